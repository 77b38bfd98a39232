"""Prompts for comparing models without the rows of a task."""

from __future__ import annotations

SENTENCES = (
    "Translate English to German: The house at the end of the street is for sale.",
    "Is this review positive or negative? I loved every minute of the film, even the slow ones.",
    "Summarize the following conversation. Ana: The printer is out of paper again. Ben: I will bring two boxes at "
    "noon. Ana: Make it three, the finance team prints everything. Ben: Fine, three.",
    "Please answer this question: Why does bread rise?",
    "Question: who feeds the cat? Context: Mia is away until Friday, so Tom feeds the cat and waters the plants.",
    "Correct the sentence: She go to school every days with she brother.",
)
