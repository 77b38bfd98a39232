"""Small LoRA adapters for FLAN-T5: train, merge, score with ROUGE, generate, export to ONNX."""

from importlib.metadata import PackageNotFoundError, version

from export.telemetry import opt_out

opt_out()  # before anything imports a library that would call home

try:
    __version__ = version("lora-ft")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
