"""The metrics that a task may name, and the scores that each of them returns."""

from __future__ import annotations

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
EXACT_MATCH = "exact_match"
GIVES: dict[str, tuple[str, ...]] = {
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
SCORES = tuple(score for scores in GIVES.values() for score in scores)
