"""Share of an answer's names and numbers that its source has (Nan et al. 2021, doi:10.18653/v1/2021.eacl-main.235).

Nan et al. recognize entities with a model. Here names are found by capital letters and numbers by digits
(`lora_ft.data.entities`), so that no model decides what an error is. The unsupported ones of each answer are written
with the predictions. Where capital letters do not mark names, only numbers are scored, and the signature says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_ft.data.entities import Source, marks_names, names, numbers
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.metric_names import SCORES_OF, UNSUPPORTED

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

_NAMES, _NUMBERS = SCORES_OF["entity_precision"]
_Finder = Callable[[str], list[str]]
_Lookup = Callable[[Source, str], bool]


def measure(
    answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate, sources: Sequence[str]
) -> dict[str, Scored]:
    """Return the share of supported names and of supported numbers. Answers without any are left out of the mean.

    The first reference of each row is measured for comparison. `details` has the unsupported names and numbers.
    """
    kinds: dict[str, tuple[_Finder, _Lookup]] = {_NUMBERS: (numbers, Source.has_number)}
    how = "numbers written with digits"
    if marks_names(sources, settings.language):
        kinds = {_NAMES: (names, Source.has_name)} | kinds
        how = f"names by capital letters, {how}"
    else:
        how += f"; names are not scored, since capital letters do not mark them here (language {settings.language})"
    looked_up = [Source(source, settings.language) for source in sources]
    unsupported = [list[str]() for _ in answers]
    rows, expected = {}, list[str]()
    for name, (find, has) in kinds.items():
        rows[name], missing = _precision(answers, looked_up, find, has)
        unsupported = [earlier + more for earlier, more in zip(unsupported, missing, strict=True)]
        reference_rows, _ = _precision([texts[0] for texts in references], looked_up, find, has)
        expected.append(f"{name} {Scored.mean(reference_rows).value:.1f}")
    how += f"; references: {', '.join(expected)}"
    details = {UNSUPPORTED: unsupported}
    return {name: Scored.mean(scores, how, details if name == _NUMBERS else None) for name, scores in rows.items()}


def _precision(
    answers: Sequence[str], sources: Sequence[Source], find: _Finder, has: _Lookup
) -> tuple[np.ndarray, list[list[str]]]:
    """Return the share of each answer's entities that its source has [rows], NaN without any, and those that it lacks.

    If no answer has any, nothing is unsupported, and all rows are 100.
    """
    rows, missing = np.full(len(answers), np.nan), []
    for i, (answer, source) in enumerate(zip(answers, sources, strict=True)):
        entities = find(answer)
        missing.append([entity for entity in entities if not has(source, entity)])
        if entities:
            rows[i] = 100 * (1 - len(missing[-1]) / len(entities))
    return (rows if np.isfinite(rows).any() else np.full(len(answers), 100.0)), missing
