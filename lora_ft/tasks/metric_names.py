"""Metrics that a task may name, and the scores of each."""

from __future__ import annotations

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
EXACT_MATCH = "exact_match"
SCORES_OF: dict[str, tuple[str, ...]] = {
    "rouge": ROUGE,
    "rougeSU4": ("rougeSU4",),
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    EXACT_MATCH: (EXACT_MATCH,),
    "f1": ("f1",),
    "meteor": ("meteor",),
    "bertscore": ("bertscore",),
    "structured": ("valid", "same_value"),
    "classification": ("accuracy", "macro_f1"),
}
"""Scores of each metric. The metric's module has its name in lowercase."""
SCORES = tuple(score for scores in SCORES_OF.values() for score in scores)


def check_score(name: str) -> str:
    """Return the name of a score; raise ValueError if it is unknown."""
    if name not in SCORES:
        raise ValueError(f"unknown score; use one of {', '.join(SCORES)}")
    return name
