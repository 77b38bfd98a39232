"""Choose the winner of a search: the smallest adapter that is not significantly worse than the best on validation rows.

Every finalist answers the validation rows with each of its seeds. A paired test compares it with the best one, row by
row. Test rows are never read for this, so scores on them stay honest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_ft.core.progress import Progress
from lora_ft.data.splits import Example
from lora_ft.evaluation.metrics import Scored, score
from lora_ft.evaluation.metrics.statistics import compare, holm
from lora_ft.models.loading import load
from lora_ft.runs.run import Run
from lora_ft.runs.search_record import TRIALS, Finalist, SearchRecord, Trial

SIGNIFICANT = 0.05


def choose_winner(
    record: SearchRecord, finalists: Sequence[Trial], examples: Sequence[Example], out: Path, progress: Progress
) -> None:
    """Score the finalists on validation rows, test their differences, and record them with the winner.

    Args:
        record: Record of the search; `finalists` and `winner` are set.
        finalists: Finished trials. Their repetitions are in the record.
        examples: Validation rows.
        out: Folder of the search.
        progress: Receives stages.
    """
    scored: dict[int, Scored] = {}
    runs: dict[int, list[Run]] = {}
    for trial in finalists:
        seeds = [other for other in record.trials if trial.number in (other.number, other.repeats)]
        runs[trial.number] = [Run(out / TRIALS / other.name) for other in seeds if other.state == "finished"]
        scored[trial.number] = mean_of(
            [_score(run, record.test_metric, examples, progress) for run in runs[trial.number]]
        )
    order = sorted(finalists, key=lambda trial: (-scored[trial.number].value, trial.number))
    leader = scored[order[0].number]
    record.finalists = []
    for trial in order:
        mine = scored[trial.number]
        names = [run.task.name for run in runs[trial.number]]
        finalist = Finalist(trial.number, names, trial.parameters, round(mine.value, 4))
        if trial is not order[0]:
            settings = runs[trial.number][0].task.evaluate
            change = compare(mine, leader, seed=settings.seed, resamples=settings.bootstrap)
            estimate = change.estimate
            finalist.difference = (round(estimate.mean, 4), round(estimate.low, 4), round(estimate.high, 4))
            finalist.p = change.p
        record.finalists.append(finalist)
    behind = [finalist for finalist in record.finalists if finalist.p is not None]
    for finalist, p in zip(behind, holm([finalist.p or 0.0 for finalist in behind]), strict=True):
        finalist.p = round(p, 6)
    winner = select(record.finalists)
    best = max(runs[winner.trial], key=lambda run: record.sign * run.metrics["best_metric"])
    record.winner = best.task.name


def select(finalists: Sequence[Finalist]) -> Finalist:
    """Return the finalist with the fewest parameters of those that are not significantly worse than the best one.

    Args:
        finalists: Finalists from the best score to the worst.
    """
    equal = [finalist for finalist in finalists if finalist.p is None or finalist.p >= SIGNIFICANT]
    return min(equal, key=lambda finalist: finalist.parameters)


def mean_of(scores: Sequence[Scored]) -> Scored:
    """Return the mean score of several seeds on the same rows. A resample draws a row with all of its seeds."""
    width = scores[0].parts.shape[1]

    def whole(sums: np.ndarray) -> float:
        parts = (sums[start : start + width] for start in range(0, width * len(scores), width))
        return float(np.mean([scored.whole(part) for scored, part in zip(scores, parts, strict=True)]))

    rows = np.mean([scored.rows for scored in scores], axis=0)
    return Scored(rows, np.hstack([scored.parts for scored in scores]), whole, scores[0].how)


def _score(run: Run, metric: str, examples: Sequence[Example], progress: Progress) -> Scored:
    """Return the score of a run's answers to the validation rows."""
    task = run.task
    progress.stage(f"generating with {task.name}", len(examples))
    answers = load(run).backend.generate(
        [example.prompt for example in examples],
        task.scoring_options(),
        batch_size=task.train.per_device_eval_batch_size,
        on_progress=progress.advance,
    )
    return score(
        metric, [answer.text for answer in answers], [example.references for example in examples], task.evaluate
    )
