"""Run a bundle with numpy, onnxruntime and tokenizers alone.

from lora_ft.export.runtime import Generator
print(Generator.load("bundle").generate(["..."]))
"""

from lora_ft.core.prompt import Prompt
from lora_ft.export.runtime.generator import Generator

__all__ = ["Generator", "Prompt"]
