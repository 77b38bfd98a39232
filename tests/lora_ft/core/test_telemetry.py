"""Importing this project's packages turns off the telemetry of other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_ft.core.telemetry import OPT_OUT
from tests.guarded import watched


def test_loading_a_bundle_opens_no_connection(published: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from lora_ft.export.runtime import Generator; print(Generator.load(sys.argv[1]).generate(['a b']))"
    )
    process, reached, home = watched(tmp_path, [sys.executable, "-c", script, str(published)])
    assert process.returncode == 0, process.stderr
    assert reached == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_guard_detects_a_connection(tmp_path: Path) -> None:
    script = "import urllib.request\ntry:\n urllib.request.urlopen('http://192.0.2.1/')\nexcept OSError: pass"
    process, reached, _ = watched(tmp_path, [sys.executable, "-c", script])
    assert process.returncode == 0, process.stderr
    assert "192.0.2.1" in reached


@pytest.mark.parametrize("package", ["lora_ft.export", "lora_ft", "benchmarks"])
def test_each_package_opts_out_before_anything_else(package: str, tmp_path: Path) -> None:
    script = (
        f"import os, sys, {package}; print(sorted(sys.modules)); "
        f"print({{name: os.environ.get(name) for name in {list(OPT_OUT)}}})"
    )
    process, _, _ = watched(tmp_path, [sys.executable, "-c", script])
    modules, variables = process.stdout.splitlines()
    assert "'onnxruntime'" not in modules and "'huggingface_hub'" not in modules
    assert variables == str(dict(OPT_OUT))


def test_variables_set_by_the_user_are_kept(tmp_path: Path) -> None:
    script = (
        "import os, lora_ft.export; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    process, _, _ = watched(
        tmp_path, [sys.executable, "-c", script], ORT_DISABLE_TELEMETRY="0", RAY_USAGE_STATS_ENABLED="1"
    )
    assert process.stdout.split() == ["0", "1"]
