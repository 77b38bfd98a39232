"""Every example runs from rows to answers on a tiny model."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_ft

EXAMPLES = Path(__file__).parents[1] / "examples"
TRAINED = ("summaries", "classification", "structured_output")


def run_script(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an example as `python examples/NAME.py ARGUMENTS` does."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_example_is_listed_and_tested() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert scripts == {*TRAINED, "serve_lines", "fastapi_app"}
    assert all(f"({path.name})" in listed for path in EXAMPLES.glob("*.[pi]*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_example_trains_and_answers(
    name: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(name, "--base", str(tiny_base), "--out", str(tmp_path), monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("\n") == 2


def test_service_answers_each_line_and_survives_a_malformed_one(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = b'not JSON\n\xff{}\n{"text": "abc"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    run_script("serve_lines", str(published), monkeypatch=monkeypatch)
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert "error" in first and "error" in second
    assert set(third) <= {"answer", "error"}


def test_fastapi_app_answers_streams_and_refuses(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("BUNDLE", str(published))
    app = runpy.run_path(str(EXAMPLES / "fastapi_app.py"))["app"]
    expected = lora_ft.load(published).generate([{"text": "abc"}])[0]
    with TestClient(app) as client:
        assert client.post("/answer", json={"text": "abc"}).json() == {"answer": expected}
        assert client.post("/stream", json={"text": "abc"}).text == expected
        for path in ("/answer", "/stream"):
            refusal = client.post(path, json={"other": "abc"})
            assert refusal.status_code == 422
            assert "lacks the column" in refusal.json()["detail"]
        monkeypatch.setattr(app.state.model._engine, "max_queue", 0)
        for path in ("/answer", "/stream"):
            refusal = client.post(path, json={"text": "abc"})
            assert refusal.status_code == 429 and int(refusal.headers["retry-after"]) >= 1


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "from_rows_to_a_bundle.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        assert not cell["outputs"], "a committed notebook has no outputs"
        exec("".join(cell["source"]).replace('"offline"', repr(str(tiny_base))), names)
    assert (tmp_path / "runs/notebook/bundle/manifest.json").is_file()
