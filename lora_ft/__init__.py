"""Small LoRA adapters for FLAN-T5: train, merge, score with ROUGE, generate, export to ONNX."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lora_ft.core.telemetry import opt_out

opt_out()  # before anything imports a library that would call home

if Path(__file__).with_name("export").is_file():  # Git on Windows writes a link as a text file, unless told otherwise
    raise ImportError(
        "lora_ft/export is not a link to the folder export/; in this checkout, run "
        "`git config core.symlinks true` and `git checkout -- lora_ft/export` (on Windows in Developer Mode)"
    )

try:
    __version__ = version("lora-ft")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
