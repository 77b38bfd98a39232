"""The study of servers: every server is measured, finished ones are kept, and the tables show the figures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import benchmarks.studies.serving as module
from benchmarks import readme
from benchmarks.serving_tables import BATCHES, ENGINE, OWN, SERVE, same_loads
from lora_ft.bench.serve_report import LoadPlan, ServeReport, ServerReport
from lora_ft.bench.subjects import Subject
from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Silent
from tests.lora_ft.bench.test_serve_tables import REPORT, load, server

ROWS = module.Rows([f"say: {'word ' * (i % 5)}{i}" for i in range(9)], [f"word {i}" for i in range(9)])


class Measured:
    """A replacement of `measure`: each server answers the references, and the knee of each is lower.

    Attributes:
        names: Servers measured so far.
        bursts: Bursts of their plans.
        limits: Server that sets the limits of each.
        interrupt: Number of servers after which the user presses Ctrl-C.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.bursts: list[tuple[float, ...]] = []
        self.limits: list[str] = []
        self.interrupt = 99

    def __call__(
        self, subjects: Sequence[Subject], prompts: Sequence[str], plan: LoadPlan, **options: Any
    ) -> ServeReport:
        if len(self.names) == self.interrupt:
            raise KeyboardInterrupt
        (subject,) = subjects
        self.names.append(subject.name)
        self.bursts.append(plan.bursts)
        knee = 8.0 / len(self.names)
        reference = options["reference"]
        self.limits.append(reference.server if reference and plan.common_slo else subject.name)
        loads = [load(2.0, 0.2), load(knee, 0.3), load(9.0, 0.9, stopped=True)]
        if reference:
            assert reference.alone == (0.1,) * 48
            loads.append(load(reference.knee, 0.6, reference=True))
        else:
            loads[1] = loads[1].model_copy(update={"reference": True})
        drawn = [ROWS.references[i] for i in module.drawn_rows(len(prompts), plan)]
        measured = server(subject.name, loads, knee).model_copy(
            update={"answers": drawn, "limits_from": self.limits[-1]}
        )
        return REPORT.model_copy(update={"servers": [measured], "warnings": []})


@pytest.fixture
def models(published: Path, checkpoint: Path, tmp_path: Path) -> module.Models:
    return module.Models(published, checkpoint, tmp_path / "work", (published.name,))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, models: module.Models) -> Measured:
    """Replace the preparation of models, the rows, environments of peers, and the measurement."""
    simulated = Measured()
    monkeypatch.setattr(module, "measure", simulated)
    monkeypatch.setattr(module, "prepare", lambda *_: models)
    monkeypatch.setattr(module, "read", lambda *_: ROWS)
    monkeypatch.setattr(module, "interpreter", lambda peer: f"/environments/{peer}/bin/python")
    return simulated


def study(*arguments: str) -> Any:
    """Run the command."""
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, ["run", "data", *arguments])


def test_own_servers_and_all_peers_are_measured(measured: Measured, tmp_path: Path) -> None:
    file = tmp_path / "serving.json"
    result = study("--json", str(file))
    assert result.exit_code == 0, result.exception
    assert measured.names[:3] == list(OWN) and len(measured.names) == 7
    assert measured.bursts == [(0.8,), (), (0.8,), *[()] * 4]
    assert measured.limits == [SERVE] * 3 + measured.names[3:]
    figures = json.loads(file.read_text())
    assert [entry["name"] for entry in figures["servers"]] == measured.names
    assert {entry["rouge1"] for entry in figures["servers"]} == {100.0} and "environment" in figures
    assert "seconds" not in figures["servers"][0]["loads"][0]
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 7 + 2 + 7 + 2 + 6  # all own servers were offered 2.0 and 8.0, the knee of the first
    assert [line.split("|")[6].strip() for line in lines[2:9]] == [f"{i}.0" for i in range(1, 8)]


def test_an_interrupted_run_keeps_finished_servers_and_resumes(measured: Measured, tmp_path: Path) -> None:
    file = tmp_path / "serving.json"
    measured.interrupt = 2
    assert study("--json", str(file)).exit_code != 0
    assert [entry["name"] for entry in json.loads(file.read_text())["servers"]] == [SERVE, ENGINE]
    measured.interrupt = 99
    assert study("--json", str(file), "--resume", "--peers", "optimum").exit_code == 0
    assert measured.names[2:] == [BATCHES, "Optimum int8 (wo and head fp32), batch 8"]
    assert [entry["name"] for entry in json.loads(file.read_text())["servers"]] == measured.names
    changed = study("--json", str(file), "--resume", "--rows", "7")
    assert isinstance(changed.exception, UsageError) and "was measured with another plan" in str(changed.exception)


def test_a_failed_server_is_measured_again(models: module.Models, measured: Measured) -> None:
    failed = module.figures(server(SERVE, [], None, "out of memory"), [])
    results = {"servers": [failed], "seconds": 0.0, "warnings": []}
    written: list[int] = []
    module.measure_all(
        module.subjects(models, []),
        ROWS,
        LoadPlan(),
        results,
        lambda: written.append(len(results["servers"])),
        Silent(),
    )
    assert measured.names == list(OWN) and written == [1, 2, 3]
    assert [entry["error"] for entry in results["servers"]] == [""] * 3


def test_resume_needs_a_file(measured: Measured) -> None:
    result = study("--resume")
    assert isinstance(result.exception, UsageError) and "add --json FILE" in str(result.exception)


def test_a_peer_that_does_not_exist_is_refused(models: module.Models) -> None:
    with pytest.raises(UsageError, match="peer 'vllm' does not exist"):
        module.subjects(models, ["vllm"])


def test_commands_have_a_port_and_engines_of_a_peer_share_files(measured: Measured, models: module.Models) -> None:
    commands = {subject.name: shlex.split(subject.source) for subject in module.subjects(models, list(module.PEERS))}
    assert all("{port}" in words for name, words in commands.items() if name != ENGINE)
    batches, alone = (words for name, words in commands.items() if name.startswith("CTranslate2"))
    assert batches[6] == alone[6] and batches[6].endswith("ctranslate2-int8")
    assert commands[module.TRANSFORMERS][0] == "/environments/litserve/bin/python"


def test_answers_that_are_much_worse_are_a_warning() -> None:
    def scored(name: str, score: float | None) -> dict[str, Any]:
        return {"name": name, "rouge1": score}

    assert module.wrong_answers([scored("ours", 40.0), scored("theirs", 36.0)]) == []
    assert module.wrong_answers([scored("ours", 40.0), scored("failed", None)]) == []
    (warning,) = module.wrong_answers([scored("ours", 40.0), scored("theirs", 20.0)])
    assert warning == "theirs: its answers are wrong (ROUGE-1 20.0, first server: 40.0); do not compare its speed"


def test_a_tiny_bundle_is_measured_by_all_own_servers(models: module.Models) -> None:
    plan = LoadPlan(rows=3, requests=64, loads=(50.0,), bursts=(), max_tokens=6, slo=1e6)
    results: dict[str, Any] = {"servers": [], "seconds": 0.0, "warnings": []}
    module.measure_all(module.subjects(models, []), ROWS, plan, results, lambda: None, Silent())
    assert [(entry["error"], entry["knee"]) for entry in results["servers"]] == [("", 50.0)] * 3
    assert len({entry["rouge1"] for entry in results["servers"]}) == 1
    assert len(same_loads(results["servers"])) == 3


def results(servers: Sequence[ServerReport]) -> dict[str, Any]:
    """Return results of the study."""
    return {
        "environment": {"cores": "2 allowed of 2", "cpu": "AMD EPYC", "cpu flags": "avx2"},
        "precision": "int8",
        "adapters": 10,
        "plan": LoadPlan().model_dump(mode="json"),
        "warnings": [],
        "servers": [module.figures(entry, []) for entry in servers],
    }


def test_the_readme_s_sentence_has_the_figures_of_the_results() -> None:
    servers = [
        server(SERVE, [load(6.0, 0.2)], 6.0),
        server(ENGINE, [load(7.0, 0.2)], 7.0),
        server(module.TRANSFORMERS, [load(1.0, 0.2)], 1.0),
        server("broken", [], None, "out of memory"),
    ]
    line = readme.serving_line(results(servers))
    assert "6.0 requests/s within 3 times" in line and "first text after 200 ms" in line
    assert f"6.0 times that of {module.TRANSFORMERS}." in line and "broken" not in line
    assert readme.serving_line(results([server(SERVE, [], None)])) == ""
    text = readme.serving(results(servers))
    assert "| broken | – | – |" in text and "2 cores of AMD EPYC (avx2)" in text


def test_the_page_compares_servers_at_the_reference_load_and_names_the_limits() -> None:
    servers = [
        server(SERVE, [load(6.0, 0.2, reference=True)], 6.0),
        server(BATCHES, [load(6.0, 0.5, reference=True, failed={0: 2})], None).model_copy(
            update={"limits_from": SERVE}
        ),
        server(module.TRANSFORMERS, [load(1.0, 0.2), load(6.0, 3.0, reference=True, within=0.5)], 1.0),
        server("broken", [], None, "out of memory"),
    ]
    text = readme.serving(results(servers))
    assert "| at 6.00 requests/s |" in text and "| lora-ft serve | 100 | 200 | 1.0 | 200 | 200 | 0 of 64 |" in text
    assert f"| {BATCHES} | 100 | 500 | 2.5 | 500 | 500 | 2 of 64 |" in text
    assert f"| {module.TRANSFORMERS} | 50 | 3,000 | 15.0 | 3,000 | 3,000 | 0 of 64 |" in text
    assert "within 3 times the time of its row alone on lora-ft serve. For transformers" in text
    assert f"For {module.TRANSFORMERS}; broken, the row alone on that server itself counts" in text


def test_a_table_without_results_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(readme.lines, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "PAGES", {"page.md": ("serving",)})
    begin = "<!-- results: serving (python -m benchmarks.readme) -->"
    (tmp_path / "page.md").write_text(f"before\n{begin}\nold\n{readme.END}\nafter\n")
    assert readme.updated("page.md") == f"before\n{begin}\n{readme.END}\nafter\n"
    (tmp_path / "serving.json").write_text(json.dumps(results([server(SERVE, [load(6.0, 0.2)], 6.0)])))
    assert "| lora-ft serve | – | 100 | 6.00 |" in readme.updated("page.md")
