"""Run a bundle with numpy, onnxruntime and tokenizers alone.

from export.runtime import Generator
print(Generator.load("bundle").generate(["..."]))
"""

from export.runtime.generator import Generator
from export.runtime.prompt import Prompt

__all__ = ["Generator", "Prompt"]
