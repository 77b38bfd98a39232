"""Record of a search (search.json): its trials, rounds, finalists and winner. A killed search continues from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import read_json, write_json
from lora_ft.core.plain import plain_fields

SEARCH_RECORD, SEARCH_PAGE, STUDY = "search.json", "search.html", "optuna.journal"
TRIALS, WINNER = "trials", "winner"  # folders: the trials that finished, and a copy of the best run
VERSION = 2
State = Literal["waiting", "running", "paused", "finished", "failed"]


@dataclass
class Trial:
    """One combination of values, or one of its repetitions with another seed.

    Attributes:
        number: Number, from 0.
        name: Name of its task and of its run.
        settings: Values of the searched keys.
        seed: Seed of the training.
        parameters: Number of trained parameters.
        steps: Optimizer steps of its plan.
        repeats: Number of the trial that it repeats with another seed, or None.
        state: A paused trial is behind others, and continues only if it is promoted.
        step: Number of finished steps.
        scores: Best validation score on arrival at each rung and at the end; of a repetition, at the end only.
        curve: Steps and validation scores.
        left: Round after which it paused, finished or failed last, from 1; 0 before that.
        reason: Reason why it failed or was never promoted.
    """

    number: int
    name: str
    settings: dict[str, Any]
    seed: int
    parameters: int
    steps: int
    repeats: int | None = None
    state: State = "waiting"
    step: int = 0
    scores: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    left: int = 0
    reason: str = ""


@dataclass
class Round:
    """Training of one adapter group between two decisions.

    Attributes:
        trials: Numbers of the trials in the group.
        steps: Optimizer steps of all of them.
        seconds: Duration, in seconds.
    """

    trials: list[int]
    steps: int
    seconds: float


@dataclass
class Finalist:
    """A trial with all of its seeds, in the final comparison.

    Attributes:
        trial: Number of the trial.
        runs: Names of its runs, one for each seed.
        parameters: Number of trained parameters.
        score: Validation score of all rows, mean over the seeds, 0 to 100.
        difference: Difference from the best finalist, with its 95 % interval; None for the best.
        p: P-value of the paired test of this difference, corrected for the number of tests; None for the best.
    """

    trial: int
    runs: list[str]
    parameters: int
    score: float
    difference: tuple[float, float, float] | None = None
    p: float | None = None


@dataclass
class SearchSettings:
    """Options of a search.

    Attributes:
        trials: Maximum number of trials.
        steps: Number of optimizer steps of all trials after which no trial begins, or None.
        minutes: Minutes of training after which no trial begins, or None.
        finalists: Number of finished trials to repeat and compare.
        seeds: Number of seeds of each finalist.
        group_size: Maximum number of adapters trained in one pass.
    """

    trials: int = 24
    steps: int | None = None
    minutes: float | None = None
    finalists: int = 2
    seeds: int = 2
    group_size: int = 12


@dataclass
class SearchRecord:
    """Content of search.json.

    Attributes:
        task: Task with every default filled in, without the searched values.
        space: Values or range of each searched key.
        settings: Options of the search.
        metric: Validation score that ranks the trials.
        test_metric: Score of the paired test of the finalists.
        precision: Number format of training.
        rows: Digest of the task's rows.
        identity: Identifier of the search, which its snapshots carry.
        trials, rounds, finalists: See their classes.
        winner: Name of the winning run, or None while the search is unfinished.
        version: Version of the format.
    """

    task: dict[str, Any]
    space: dict[str, Any]
    settings: SearchSettings
    metric: str
    test_metric: str
    precision: str
    rows: str
    identity: str
    trials: list[Trial] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    finalists: list[Finalist] = field(default_factory=list)
    winner: str | None = None
    version: int = VERSION

    @property
    def sign(self) -> int:
        """1 if a larger score is better, else -1."""
        return -1 if self.metric == "loss" else 1

    @property
    def first_seeds(self) -> list[Trial]:
        """Trials without the repetitions of finalists."""
        return [trial for trial in self.trials if trial.repeats is None]

    @property
    def seconds(self) -> float:
        """Duration of all rounds, in seconds."""
        return sum(entry.seconds for entry in self.rounds)

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return sum(entry.steps for entry in self.rounds)

    @property
    def runs_tried(self) -> int:
        """Number of trainings that began, with those that were stopped or repeated."""
        return sum(trial.step > 0 or trial.state == "failed" for trial in self.trials)

    def running(self) -> list[Trial]:
        """Return the trials of the current round."""
        return [trial for trial in self.trials if trial.state == "running"]

    def best(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return trials from the best to the worst of their last scores. Trials without a score are left out."""
        scored = [trial for trial in trials if trial.scores]
        return sorted(scored, key=lambda trial: (-self.sign * trial.scores[-1], trial.number))

    def as_dict(self) -> dict[str, Any]:
        """Return the content of search.json."""
        return {"version": self.version, "runs_tried": self.runs_tried} | plain_fields(self)

    def write(self, out: Path) -> None:
        """Write search.json into the folder of the search."""
        write_json(out / SEARCH_RECORD, self.as_dict())


_SCHEMA = TypeAdapter(SearchRecord)


def read_search(out: Path) -> SearchRecord:
    """Return the record of the search in a folder.

    Raises:
        LoraFtError: The file is damaged, or has another format version.
    """
    path = out / SEARCH_RECORD
    content = read_json(path)
    if content.get("version") != VERSION:
        raise LoraFtError(
            f"{path} has format version {content.get('version')}, which is not supported (supported: {VERSION})",
            "start over with --overwrite",
        )
    content.pop("runs_tried", None)
    try:
        return _SCHEMA.validate_python(content)
    except ValidationError as error:
        key = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise LoraFtError(f"{path}: {key[:80]} is damaged or missing", "start over with --overwrite") from error
