"""Measure `lora-ft serve` on DialogSum with ten adapters, against whole-request batching and other runtimes.

    python -m benchmarks.studies.serving RUN DATA_FOLDER [--work FOLDER] [--json FILE] [--resume]

RUN is a run of benchmarks/tasks/dialogsum.yaml, and DATA_FOLDER holds its test.jsonl. The bank has ten copies of the
run's adapter under different names: each is read and applied on its own, and all answers have natural lengths. Rows of
more than 512 tokens are left out, since the server refuses them. Peers serve the run's merged model without adapters,
which is less work. ROUGE-1 shows that they still answer as the model does.

Servers on lora-ft's runtime share the limits of `lora-ft serve`. Peers keep limits of their own times alone, which are
looser since they are slower alone. Every server is also measured at the knee of `lora-ft serve`.

FILE is written after each server. `--resume` keeps the servers that FILE already has.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import lora_ft.bench
from benchmarks.command import run_command
from benchmarks.serving_tables import BATCHES, ENGINE, OWN, SERVE, tables
from lora_ft.bank import export_bank
from lora_ft.bench.batch_server import SOURCE
from lora_ft.bench.peer_environments import interpreter
from lora_ft.bench.reference import Reference
from lora_ft.bench.serve import drawn_rows, measure
from lora_ft.bench.serve_report import Load, LoadPlan, ServerReport
from lora_ft.bench.subjects import Subject
from lora_ft.core.errors import UsageError
from lora_ft.core.files import write_json
from lora_ft.core.progress import Progress
from lora_ft.core.prompt import Prompt
from lora_ft.data.readers import read_rows
from lora_ft.deployment.bank_adapter import VerificationSettings
from lora_ft.doctor import environment
from lora_ft.evaluation.metrics import rouge
from lora_ft.export.bundle.bank import locked, store
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.bank import TASK
from lora_ft.export.runtime.safetensors_file import map_tensors
from lora_ft.merge import merge
from lora_ft.models.bases import load_tokenizer
from lora_ft.reports.screen import Screen
from lora_ft.runs.run import Run
from lora_ft.tasks.evaluate import Evaluate

TRANSFORMERS = "transformers fp32 in LitServe, batch 8"
_BENCH = Path(lora_ft.bench.__file__).parent
_MAX_TOKENS = 96  # the limit of the task
_WORSE = 8.0  # points of ROUGE-1 below the first server before a server's answers count as wrong
_PLAN = LoadPlan(
    rows=16,
    requests=200,
    seconds=20.0,
    common_slo=True,
    growth=1.25,
    attempts=1,
    refinements=0,
    bursts=(0.8,),
    max_tokens=_MAX_TOKENS,
)
"""About 25 minutes for all servers, most of them for slow peers: 64 requests at 0.4 requests/s take 160 s."""


@dataclass(frozen=True)
class Models:
    """The same model in the forms that servers load.

    Attributes:
        bank: Bank with ten adapters.
        checkpoint: Merged checkpoint.
        work: Folder for what peers convert.
        adapters: Names of the adapters.
    """

    bank: Path
    checkpoint: Path
    work: Path
    adapters: tuple[str, ...]


def prepare(run: str, work: Path, precision: str, count: int) -> Models:
    """Export a bank and a merged checkpoint of a run below `work`, unless they exist."""
    bank, checkpoint = work / f"bank-{precision}", work / "checkpoint"
    names = tuple(f"a{i}" for i in range(count))
    with Screen() as screen:
        if not checkpoint.is_dir():
            merge(run, checkpoint, progress=screen)
        if not bank.is_dir():
            checks = VerificationSettings(rows=4, score_rows=8, force=True)
            export_bank([f"{names[0]}={run}"], bank, precision=precision, checks=checks, progress=screen)
    with locked(bank) as content:
        adapters = content[manifest.ADAPTERS]
        arrays, texts = map_tensors(bank / manifest.adapter_files(content)[0])
        for name in names[len(adapters) :]:
            adapters[name] = adapters[names[0]] | store(bank, name, arrays, texts[TASK])
        write_json(bank / manifest.NAME, content)
    return Models(bank, checkpoint, work, names)


PEERS: dict[str, Callable[[Models], Subject]] = {
    "transformers": lambda models: _peer(
        TRANSFORMERS, _command("litserve", "litserve_server.py", str(models.checkpoint), "{port}")
    ),
    "optimum": lambda models: _peer(
        "Optimum int8 (wo and head fp32), batch 8", _batches(models, "optimum", "optimum", "int8-mixed", 8)
    ),
    "optimum-int8": lambda models: _peer("Optimum int8, batch 8", _batches(models, "optimum", "optimum", "int8", 8)),
    "ctranslate2": lambda models: _peer(
        "CTranslate2 int8, batch 8", _batches(models, "peers", "ctranslate2", "int8", 8)
    ),
    "translator": lambda models: _peer(
        "CTranslate2 int8, 2 at a time", _batches(models, "peers", "translator", "int8", 1, workers=2)
    ),
}
"""Servers of other runtimes, by name. They have no adapters."""


def subjects(models: Models, peers: Sequence[str]) -> list[Subject]:
    """Return lora-ft's server, its engine, whole-request batching in the same runtime, and the peers.

    Raises:
        UsageError: A peer does not exist.
    """
    for peer in peers:
        if peer not in PEERS:
            raise UsageError(f"peer {peer!r} does not exist", f"choose from {', '.join(PEERS)}")
    server = f"{shlex.join([sys.executable, '-m', 'lora_ft', 'serve', str(models.bank)])} --port {{port}}"
    batches = _batches(models, "", "bank", "int8", 8)
    return [
        Subject(SERVE, "command", server, models.adapters),
        Subject(ENGINE, "engine", str(models.bank), models.adapters),
        Subject(BATCHES, "command", batches, models.adapters, stream=False),
        *(PEERS[peer](models) for peer in peers),
    ]


def _peer(name: str, command: str) -> Subject:
    return Subject(name, "command", command, ("base",), stream=False)


def _command(environment: str, file: str, *arguments: str) -> str:
    """Return the command of a server in the environment of a peer. Braces around `port` must not be quoted."""
    words = [interpreter(environment), "-P", str(_BENCH / file), *arguments]
    return shlex.join(words).replace("'{port}'", "{port}")


def _batches(models: Models, environment: str, kind: str, precision: str, batch: int, workers: int = 1) -> str:
    """Return the command of a server that batches whole requests. The two engines of a peer share converted files."""
    prepared = models.bank if kind == "bank" else models.work / f"{_CONVERTED.get(kind, kind)}-{precision}"
    arguments = [kind, precision, str(models.checkpoint), str(prepared), "{port}"]
    return _command(environment, "batch_server.py", *arguments, "--batch", str(batch), "--workers", str(workers))


_CONVERTED = {"translator": "ctranslate2"}


@dataclass(frozen=True)
class Rows:
    """Rows that are short enough for all servers.

    Attributes:
        prompts: Finished prompts.
        references: Expected answers.
    """

    prompts: list[str]
    references: list[str]


def read(run: str, data: Path, checkpoint: Path) -> Rows:
    """Return the test rows that have at most 512 tokens."""
    task = Run(Path(run)).task
    template, target = Prompt(str(task.prompt)), str(task.data.target)
    rows = [row for _, row in read_rows(data, "test.jsonl", "DATA_FOLDER")]
    prompts = [template.fill(row) for row in rows]
    lengths = map(len, load_tokenizer(checkpoint).encode(prompts))
    kept = [i for i, length in enumerate(lengths) if length <= SOURCE]
    return Rows([prompts[i] for i in kept], [str(rows[i][target]) for i in kept])


def measure_all(
    servers: Sequence[Subject],
    rows: Rows,
    plan: LoadPlan,
    results: dict[str, Any],
    write: Callable[[], None],
    progress: Progress,
) -> None:
    """Measure servers one after another and add the figures of each to `results`, which `write` then saves.

    Servers that `results` already has are kept. The first is the reference of the others. Bursts are offered to
    continuous and to whole-request batching on the same runtime only, since a burst takes minutes on a slow peer.
    """
    known = {server["name"] for server in results["servers"] if not server["error"]}
    results["servers"] = [server for server in results["servers"] if server["name"] in known]
    for subject in servers:
        if subject.name in known:
            progress.note(f"{subject.name}: kept")
            continue
        bursts = plan.bursts if subject.name in (SERVE, BATCHES) else ()
        used = plan.model_copy(update={"bursts": bursts, "common_slo": subject.name in OWN})
        reference = reference_of(results["servers"])
        report = measure([subject], rows.prompts, used, data="test.jsonl", progress=progress, reference=reference)
        (server,) = report.servers
        references = [rows.references[i] for i in drawn_rows(len(rows.prompts), plan)]
        results["servers"].append(figures(server, references))
        results["seconds"] += report.seconds
        results["warnings"] += report.warnings + wrong_answers(results["servers"])
        write()


def reference_of(servers: Sequence[dict[str, Any]]) -> Reference | None:
    """Return the first server that was measured."""
    first = next((server for server in servers if server["alone_seconds"]), None)
    return Reference(first["name"], tuple(first["alone_seconds"]), first["knee"]) if first else None


def figures(server: ServerReport, references: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a server without the time of each request.

    Args:
        server: Report of the server.
        references: Expected answers of the rows alone.
    """
    score = None
    if server.answers:
        scores = rouge.measure(server.answers, [[text] for text in references], Evaluate())
        score = round(scores["rouge1"].value, 1)
    return {
        "name": server.name,
        "alone": server.percentiles.model_dump() if server.percentiles else None,
        "alone_seconds": server.alone,
        "limits_from": server.limits_from,
        "tokens": round(server.tokens, 1),
        "rouge1": score,
        "knee": server.knee,
        "goodput": server.goodput,
        "error": server.error,
        "loads": [_shortened(load) for load in server.loads],
    }


def _shortened(load: Load) -> dict[str, Any]:
    return load.model_dump(exclude={"seconds", "ratios", "first", "per_token", "usage"}) | {
        "requests": len(load.seconds),
        "megabytes_over_time": [usage.megabytes for usage in load.usage],
    }


def wrong_answers(servers: Sequence[dict[str, Any]]) -> list[str]:
    """Return a warning if the last server's answers are much worse than those of the first, on the same rows."""
    first, last = servers[0]["rouge1"], servers[-1]["rouge1"]
    if first is None or last is None or last > first - _WORSE:
        return []
    name = servers[-1]["name"]
    return [f"{name}: its answers are wrong (ROUGE-1 {last}, first server: {first}); do not compare its speed"]


def main(
    run: str,
    data: Path,
    work: Annotated[Path, typer.Option(help="Folder for the bank and the checkpoints.")] = Path("runs/serving"),
    precision: Annotated[str, typer.Option(help="Precision of the bank.")] = "int8",
    adapters: Annotated[int, typer.Option(min=1, help="Adapters of the bank.")] = 10,
    peers: Annotated[
        str, typer.Option(help="Peers, separated by commas; also optimum-int8.")
    ] = "transformers,translator,ctranslate2,optimum",
    rows: Annotated[int, typer.Option(min=1, help="Rows that requests are drawn from.")] = _PLAN.rows,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each load, if possible.")] = _PLAN.seconds,
    growth: Annotated[float, typer.Option(min=1.01, help="Factor between loads.")] = _PLAN.growth,
    refinements: Annotated[int, typer.Option(min=0, help="Bisections of the knee.")] = _PLAN.refinements,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the servers that the JSON file already has.")] = False,
) -> None:
    """Measure all servers up to their knee and print tables."""
    changes = {"rows": rows, "seconds": seconds, "growth": growth, "refinements": refinements}
    plan = _PLAN.model_copy(update=changes)
    results: dict[str, Any] = {
        "environment": environment(),
        "precision": precision,
        "adapters": adapters,
        "plan": plan.model_dump(mode="json"),
        "seconds": 0.0,
        "warnings": [],
        "servers": [],
    }
    if resume:
        results = resumed(json_file, results)
    models = prepare(run, work, precision, adapters)
    servers = subjects(models, [peer for peer in peers.split(",") if peer])

    def write() -> None:
        if json_file is not None:
            write_json(json_file, results)

    with Screen() as screen:
        measure_all(servers, read(run, data, models.checkpoint), plan, results, write, screen)
    print(tables(results))


def resumed(file: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results in a file, which must have been measured with the same settings on the same machine.

    Raises:
        UsageError: There is no file, or its settings differ.
    """
    if file is None:
        raise UsageError("--resume has no file to resume", "add --json FILE")
    if not file.is_file():
        return settings
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name, (old, now) in {
        **{name: (results.get(name), settings[name]) for name in ("precision", "adapters", "plan")},
        **{name: (results["environment"][name], settings["environment"][name]) for name in ("cpu", "cores", "commit")},
    }.items():
        if str(old).rstrip("+") != str(now).rstrip("+"):
            raise UsageError(f"{file} was measured with another {name} (got {old}, now: {now})", "drop --resume")
    return results


if __name__ == "__main__":
    run_command(main)
