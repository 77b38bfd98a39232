"""The layout `optimum` under transformers.js on Node: the merged decoder gives the bundle's text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.models.loading import load

PACKAGES = Path(os.environ.get("LORA_FT_NODE", Path(__file__).parents[3] / ".node"))
SCRIPT = Path(__file__).with_name("transformers_js.mjs")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js"),
    pytest.mark.skipif(
        not (PACKAGES / "node_modules" / "@huggingface" / "transformers").is_dir(),
        reason="transformers.js is not installed: make test-transformers-js",
    ),
]


def test_transformers_js_and_bundle_generate_the_same_text(tiny_base: Path, tmp_path: Path) -> None:
    texts = ["abc", "some more words here", "x y z"]
    expected = generate(load(str(export_onnx(str(tiny_base), tmp_path / "bundle").out)), texts, {"max_new_tokens": 12})
    assert len(set(expected)) > 1
    export_onnx(str(tiny_base), tmp_path / "model", layout="optimum")
    process = subprocess.run(
        ["node", SCRIPT, f"{tmp_path}/", "model", "12"],
        input="\n".join(texts) + "\n",
        cwd=PACKAGES,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [json.loads(line) for line in process.stdout.splitlines()] == expected
