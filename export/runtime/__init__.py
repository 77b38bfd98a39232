"""Run a bundle with numpy, onnxruntime and tokenizers alone.

from lora_ft.export.runtime import Generator
print(Generator.load("bundle").generate(["..."]))
"""

from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.prompt import Prompt

__all__ = ["Generator", "Prompt"]
