"""Label counts of each split, and warnings about rare or missing labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lora_ft.core.normal_form import normal_form
from lora_ft.data.splits import Splits
from lora_ft.tasks.schema import SPLITS, Task

_IMBALANCED = 10  # ratio of the commonest label's rows to the rarest label's, from which to warn
_SHOWN = 5  # labels in a warning


def label_counts(task: Task, splits: Splits) -> dict[str, dict[str, int]]:
    """Return the number of rows of each label by split, commonest label first; empty for tasks without labels."""
    if task.labels is None:
        return {}
    counts = {name: Counter(example.target.strip() for example in splits[name]) for name in SPLITS if splits[name]}
    total = sum(counts.values(), Counter(dict.fromkeys(task.known_labels, 0)))
    labels = sorted({*total, *task.known_labels}, key=lambda label: (-total[label], label))
    return {label: {name: counted[label] for name, counted in counts.items()} for label in labels}


def label_warnings(task: Task, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return warnings about labels missing from a split, spelled in two ways, or imbalanced."""
    warnings = []
    for name in (name for name in SPLITS if any(name in row for row in counts.values())):
        lacking = [label for label, row in counts.items() if not row[name]]
        if lacking:
            meaning = "cannot be learned" if name == "train" else "are not scored there"
            warnings.append(
                f"{name}: {len(lacking):,} of {len(counts):,} labels have no rows and {meaning}: {_listed(lacking)}"
            )
    spellings: dict[str, list[str]] = {}
    for label in counts:
        spellings.setdefault(normal_form(label).casefold(), []).append(label)
    warnings += [
        f"the labels {_listed(sorted(alike))} differ only in case, blanks or encoding; spell them alike if they are one"
        for alike in spellings.values()
        if len(alike) > 1
    ]
    trained = {label: row["train"] for label, row in counts.items() if row.get("train")}
    if trained and max(trained.values()) >= _IMBALANCED * min(trained.values()) and not task.data.oversample:
        most, least = (choose(trained, key=trained.__getitem__) for choose in (max, min))
        warnings.append(
            f"labels are imbalanced: {trained[most]:,} training rows of {most!r}, {trained[least]:,} of {least!r}; "
            "set data.oversample=true and train.metric_for_best_model=macro_f1"
        )
    return warnings


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(map(repr, labels[:_SHOWN])) + more
