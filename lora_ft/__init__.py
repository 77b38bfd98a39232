"""Small LoRA adapters for FLAN-T5: train, merge, score with ROUGE, generate, export to ONNX."""

from importlib.metadata import PackageNotFoundError, version

try:
    from lora_ft.core.telemetry import opt_out
except ModuleNotFoundError as error:  # Git on Windows writes a link as a text file, unless it is told otherwise
    if error.name != "lora_ft.export":
        raise
    raise ModuleNotFoundError(
        "lora_ft/export is not a link to the folder export/; in this checkout, run "
        "`git config core.symlinks true` and `git checkout -- lora_ft/export` (on Windows in Developer Mode)",
        name=error.name,
    ) from None

opt_out()  # before anything imports a library that would call home

try:
    __version__ = version("lora-ft")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
