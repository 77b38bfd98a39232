"""Convert a checkpoint to an ONNX bundle, and generate text from a bundle.

The folder is imported as `lora_ft.export`, through the link lora_ft/export. Of lora_ft it imports only `core`, and it
never imports torch or transformers. Building a bundle needs numpy, onnx and safetensors (extra `export`).
`lora_ft.export.runtime` needs only numpy, onnxruntime and tokenizers (the base install).
"""

if __name__ != "lora_ft.export":  # from the root of a checkout, a second name would create a second copy of each class
    raise ImportError("this package must be imported as lora_ft.export (got export); import lora_ft.export")

from lora_ft.core.telemetry import opt_out

opt_out()  # before anything imports onnxruntime
