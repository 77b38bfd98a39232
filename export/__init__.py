"""From a T5 checkpoint to an ONNX bundle, and the runtime that generates from it.

The folder is imported as `lora_ft.export`, through the link lora_ft/export. Nothing in it imports torch,
transformers or the rest of lora_ft. Building a bundle needs numpy, onnx and safetensors
(extra ``export``); ``lora_ft.export.runtime`` needs numpy, onnxruntime and tokenizers alone (the base install).
"""

if __name__ != "lora_ft.export":  # found from the root of a checkout: two names would be two copies of each class
    raise ImportError("this folder is imported as lora_ft.export (got export); import lora_ft.export")

from lora_ft.core.telemetry import opt_out

opt_out()  # before anything imports onnxruntime
