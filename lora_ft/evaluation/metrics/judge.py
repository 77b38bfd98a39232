"""Grades of a model behind an OpenAI-compatible API (`evaluate.judge`), as Zheng et al. 2023 ask for them in
"Judging LLM-as-a-Judge" (arXiv:2306.05685): one answer, one grade.

Sources and answers leave the machine, so the metric runs only if a task lists it and names a URL. A reply that is a
refusal, or has no single grade on the scale, is counted and left out of the mean; it is never a grade of 0.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError, clipped
from lora_ft.core.prompt import Prompt
from lora_ft.evaluation.judge_client import JudgeClient, Reply
from lora_ft.evaluation.metrics.statistics import Scored
from lora_ft.tasks.judge import Judge

if TYPE_CHECKING:
    from lora_ft.tasks.evaluate import Evaluate

REPLY = "judge_reply"
"""Key of a predictions file: the reply that an answer was graded by."""
_LONGEST = 2000  # characters of a reply in the predictions file
# A number on its own, or the first of "4/5" and "4 out of 5".
_GRADE = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*\d+(?:\.\d+)?)?(?![\w%]|\.\d)")


def measure(
    answers: Sequence[str], references: Sequence[Sequence[str]], settings: Evaluate, sources: Sequence[str]
) -> dict[str, Scored]:
    """Return the grade of each answer, from 0 to 100; NaN for a reply without a grade.

    Raises:
        UsageError: The judge is not set, its key is missing, or the judge refuses the requests.
        LoraFtError: The judge does not answer, or grades no answer at all.
    """
    judge, key = _required(settings)
    template = Prompt(judge.prompt)
    rows = zip(sources, answers, references, strict=True)
    prompts = [template.fill({"source": source, "answer": text, "target": texts[0]}) for source, text, texts in rows]
    replies = JudgeClient(judge, key).ask(prompts)
    low, high = judge.scale
    grades = np.array([grade(reply, low, high) for reply in replies])
    refused = sum(reply.refused for reply in replies)
    unreadable = int(np.isnan(grades).sum()) - refused
    if refused + unreadable == len(replies):
        raise LoraFtError(
            f"the judge {judge.model} graded none of {len(replies):,} answers (it replied "
            f"{clipped(replies[0].text, 200)!r})",
            "ask for a single number in evaluate.judge.prompt",
        )
    digest = hashlib.sha256(judge.prompt.encode()).hexdigest()
    counts = {"graded": len(replies) - refused - unreadable, "refused": refused, "unreadable": unreadable}
    record: dict[str, Any] = judge.model_dump(include={"url", "model", "prompt", "scale"})
    how = f"{judge.model} at {judge.url}, {low:g} to {high:g} as 0 to 100, prompt sha256 {digest[:12]}"
    return {
        "judge": Scored.mean(
            100 * (grades - low) / (high - low),
            how,
            {REPLY: [clipped(reply.text, _LONGEST) for reply in replies]},
            record | {"prompt_sha256": digest, **counts},
        )
    }


def require(settings: Evaluate) -> None:
    """Raise UsageError if the judge is not set, or the variable of its key is empty. Nothing is sent."""
    _required(settings)


def grade(reply: Reply, low: float, high: float) -> float:
    """Return the grade in a reply, or NaN: the only number in the last line of a complete reply, on the scale."""
    lines = reply.text.strip().splitlines()
    numbers = [float(number) for number in _GRADE.findall(lines[-1])] if lines else []
    is_grade = len(numbers) == 1 and low <= numbers[0] <= high and not reply.refused and not reply.cut
    return numbers[0] if is_grade else np.nan


def _required(settings: Evaluate) -> tuple[Judge, str | None]:
    """Return the judge and its key."""
    judge = settings.judge
    if judge is None:
        raise UsageError("judge needs evaluate.judge", "set url, model and prompt, or remove judge from the metrics")
    if judge.key_variable is None:
        return judge, None
    key = os.environ.get(judge.key_variable, "").strip()
    if not key:
        raise UsageError(
            f"evaluate.judge.key_variable: the environment variable {judge.key_variable} is not set",
            f"export {judge.key_variable}=KEY",
        )
    return judge, key
