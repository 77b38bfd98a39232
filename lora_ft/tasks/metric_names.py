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
    "extractiveness": ("coverage", "density", "novel_unigrams", "novel_bigrams", "novel_trigrams"),
    "entity_precision": ("entity_precision", "number_precision"),
    "nli": ("entailment",),
    "judge": ("judge",),
}
"""Scores of each metric. The metric's module has its name in lowercase."""
FROM_SOURCE = ("extractiveness", "entity_precision", "nli", "judge")
"""Metrics that compare answers with their sources. No model is chosen by them, as an empty answer may score best."""
SCORES = tuple(score for name, scores in SCORES_OF.items() if name not in FROM_SOURCE for score in scores)
"""Scores that a model may be chosen by."""
UNSUPPORTED, UNENTAILED = "unsupported", "unentailed"
"""Keys of a predictions file: an answer's names and numbers that its source lacks, and sentences it does not entail."""


def check_score(name: str) -> str:
    """Return the name of a score that a model may be chosen by; raise ValueError if there is none."""
    if any(name in SCORES_OF[metric] for metric in FROM_SOURCE):
        raise ValueError(
            f"{name} compares answers with their sources, and no model is chosen by it; list its metric in "
            f"evaluate.metrics, and use one of {', '.join(SCORES)} here"
        )
    if name not in SCORES:
        raise ValueError(f"unknown score; use one of {', '.join(SCORES)}")
    return name
