"""Measure the speed-up of prompt lookup over plain greedy search on real rows, for several batch sizes.

    python -m benchmarks.studies.prompt_lookup RUN BUNDLE… [--rows 64] [--batch 1 --batch 8] [--rounds 5] [--json FILE]

RUN is a trained run, whose task names the rows. The ratio is the time of greedy search over the time with lookup,
within a round. A bundle with phrases (`lora-ft export --drafts`) is measured with and without them. Answers need not
follow the task's JSON schema, since answers that do are not drafted.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run_command
from lora_ft.core.files import write_json
from lora_ft.data.splits import load_splits
from lora_ft.doctor import environment
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.decoding.draft_length import controller_of
from lora_ft.export.runtime.phrases import NO_PHRASES
from lora_ft.runs.run import Run


@dataclass(frozen=True)
class Gain:
    """Figures of one bundle at one batch size.

    Attributes:
        bundle, batch: Name of the bundle, and batch size.
        phrases: Number of phrases to draft from, besides the source.
        rows, tokens: Number of answered rows, and of tokens in the answers of greedy search.
        same: Share of answers that are the same with lookup.
        calls: Decoder calls with lookup.
        plain_calls: Decoder calls of greedy search, which are the tokens of the longest answer of each batch.
        ratio: Time of greedy search over time with lookup, the median of the rounds.
        worst: Lowest ratio of the rounds.
        milliseconds_per_row: Median time per row of greedy search and with lookup, in milliseconds.
    """

    bundle: str
    batch: int
    phrases: int
    rows: int
    tokens: int
    same: float
    calls: int
    plain_calls: int
    ratio: float
    worst: float
    milliseconds_per_row: tuple[float, float]


def measure(bundle: Path, prompts: list[str], batch: int, rounds: int) -> list[Gain]:
    """Answer the prompts with greedy search and with lookup in turns. Return the figures without and with phrases."""
    greedy, lookup = Generator.load(bundle), Generator.load(bundle)
    engines = {"greedy": greedy, "source": lookup}
    if phrases := len(controller_of(lookup.model).phrases):
        engines["phrases"] = Generator.load(bundle)
        controller_of(lookup.model).phrases = NO_PHRASES
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, list[list[int]]] = {}
    calls = {}
    for turn in range(rounds + 1):
        for name, generator in engines.items():
            with _Counted(generator) as counted:
                began = time.perf_counter()
                results = generator.answer(prompts, batch_size=batch, prompt_lookup=name != "greedy", json_schema=False)
                if turn:  # the first turn allocates memory and is not counted
                    seconds[name].append(time.perf_counter() - began)
            answers[name] = [answer.tokens.tolist() for answer in results]
            calls[name] = counted.calls
    gains = []
    for name in list(engines)[1:]:
        ratios = [plain / drafted for plain, drafted in zip(seconds["greedy"], seconds[name], strict=True)]
        per_row = [1000 * statistics.median(seconds[each]) / len(prompts) for each in ("greedy", name)]
        gains.append(
            Gain(
                bundle=bundle.name,
                batch=batch,
                phrases=phrases if name == "phrases" else 0,
                rows=len(prompts),
                tokens=sum(map(len, answers["greedy"])),
                same=statistics.mean(a == b for a, b in zip(answers["greedy"], answers[name], strict=True)),
                calls=calls[name],
                plain_calls=calls["greedy"],
                ratio=statistics.median(ratios),
                worst=min(ratios),
                milliseconds_per_row=(per_row[0], per_row[1]),
            )
        )
    return gains


class _Counted:
    """Context manager that counts the calls of a generator's decoder."""

    def __init__(self, generator: Generator) -> None:
        self.calls = 0
        self._model, self._step = generator.model, generator.model.step

    def __enter__(self) -> _Counted:
        def step(*args, **keys):  # type: ignore[no-untyped-def]
            self.calls += 1
            return self._step(*args, **keys)

        self._model.step = step  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self._model.step = self._step  # type: ignore[method-assign]


def _main(
    run: Path,
    bundle: list[Path],
    rows: Annotated[int, typer.Option(min=1, help="Test rows to answer.")] = 64,
    batch: Annotated[list[int], typer.Option(min=1, help="Batch size; repeatable.")] = [1, 8],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each case.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
) -> None:
    """Print a line for each bundle and batch size."""
    prompts = [example.prompt for example in load_splits(Run(run).task, ["test"]).test[:rows]]
    gains = [gain for folder in bundle for size in batch for gain in measure(folder, prompts, size, rounds)]
    for gain in gains:
        print(
            f"{gain.bundle:10} batch {gain.batch:2}, {gain.phrases:6,} phrases: speed-up over greedy {gain.ratio:.2f} "
            f"(worst round {gain.worst:.2f}), {gain.calls} calls instead of {gain.plain_calls}, {gain.same:.0%} "
            f"identical answers, {gain.milliseconds_per_row[0]:.0f} -> {gain.milliseconds_per_row[1]:.0f} ms per row"
        )
    if json_file is not None:
        write_json(
            json_file,
            {"environment": environment(), "task": Run(run).task.name, "lookup": [asdict(gain) for gain in gains]},
        )


if __name__ == "__main__":
    run_command(_main)
