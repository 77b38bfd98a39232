"""From a T5 checkpoint to an ONNX bundle, and the runtime that generates from it.

Nothing in this package imports torch, transformers or lora_ft. Building a bundle needs numpy, onnx and safetensors
(extra ``export``); ``export.runtime`` needs numpy, onnxruntime and tokenizers alone (the base install).
"""

from export.telemetry import opt_out

opt_out()  # before anything imports onnxruntime
