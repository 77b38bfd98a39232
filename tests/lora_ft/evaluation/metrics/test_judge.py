"""Grades of a judge: counted, recorded, and never guessed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.evaluate import evaluate
from lora_ft.evaluation.judge_client import Reply
from lora_ft.evaluation.metrics import measure, require
from lora_ft.evaluation.metrics.judge import grade
from lora_ft.export.runtime import Generator
from lora_ft.models.async_model import AsyncModel
from lora_ft.tasks.evaluate import Evaluate
from tests.export.oracle import make_bundle
from tests.lora_ft.evaluation.judge_server import Answer, judge_server
from tests.lora_ft.serving.conftest import serving
from tests.tiny import save_tiny_t5

PROMPT = "Source: {source}\nSummary: {answer}\nExpected: {target}\nGrade it from 1 to 5."


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_FT_CACHE", str(tmp_path / "cache"))


def settings(url: str, **more: Any) -> Evaluate:
    judge = {"url": url, "model": "big", "prompt": PROMPT, **more}
    return Evaluate.model_validate({"metrics": ["judge"], "judge": judge})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4),
        (" 4.5\n", 4.5),
        ("**4**", 4),
        ("Score: 4/5", 4),
        ("I would give it 4 out of 5.", 4),
        ("It says 3 things about 2 people.\n\nGrade: 2", 2),
        ('{"score": 3}', 3),
        ("[[3]]", 3),
        ("", np.nan),
        ("good", np.nan),
        ("between 3 and 4", np.nan),
        ("6", np.nan),
        ("0", np.nan),
        ("80%", np.nan),
        ("grade4", np.nan),
        ("4\nbecause it is good", np.nan),
    ],
)
def test_a_grade_is_the_only_number_of_the_last_line_on_the_scale(text: str, expected: float) -> None:
    assert grade(Reply(text), 1, 5) == pytest.approx(expected, nan_ok=True)


def test_refused_and_cut_replies_are_no_grades() -> None:
    assert np.isnan(grade(Reply("4", refused=True), 1, 5)) and np.isnan(grade(Reply("4", cut=True), 1, 5))


def test_grades_are_scores_and_other_replies_are_counted() -> None:
    replies: dict[str, Answer] = {"a": "5", "b": "Grade: 2", "c": {"refusal": "No."}, "d": "it is good", "e": "1"}
    with judge_server(lambda prompt: replies[prompt.split("Summary: ")[1][0]]) as server:
        scored = measure(["judge"], list(replies), [["t", "u"]] * 5, settings(server.url), [f"{x}!" for x in "abcde"])
    judged = scored["judge"]
    assert judged.rows == pytest.approx([100, 25, np.nan, np.nan, 0], nan_ok=True)
    assert judged.value == pytest.approx(125 / 3)
    assert judged.details["judge_reply"] == ["5", "Grade: 2", "No.", "it is good", "1"]
    digest = hashlib.sha256(PROMPT.encode()).hexdigest()
    assert judged.record == {
        "url": server.url,
        "model": "big",
        "prompt": PROMPT,
        "scale": [1, 5],
        "prompt_sha256": digest,
        "graded": 3,
        "refused": 1,
        "unreadable": 1,
    }
    assert judged.how == f"big at {server.url}, 1 to 5 as 0 to 100, prompt sha256 {digest[:12]}"
    assert "Source: a!\nSummary: a\nExpected: t\nGrade it from 1 to 5." in server.prompts


def test_a_judge_that_grades_nothing_is_an_error() -> None:
    problem = r"big graded none of 2 answers \(it replied 'well done'\)"
    with judge_server(lambda prompt: "well done") as server, pytest.raises(LoraFtError, match=problem):
        measure(["judge"], ["a", "b"], [["t"]] * 2, settings(server.url), ["s"] * 2)


def test_the_key_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with judge_server(lambda prompt: "3") as server:
        keyed = settings(server.url, key_variable="JUDGE_KEY")
        with pytest.raises(UsageError, match="variable JUDGE_KEY is not set; export JUDGE_KEY=KEY"):
            require(["judge"], keyed)
        monkeypatch.setenv("JUDGE_KEY", "secret\n")
        require(["judge"], keyed)
        assert not server.requests
        scored = measure(["judge"], ["a"], [["t"]], keyed, ["s"])["judge"]
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(dict(scored.record)) + scored.how


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"url": "api.example.com/v1"}, "not an address"),
        ({"url": "file:///etc/passwd"}, "not an address"),
        ({"url": "https://key@example.com/v1"}, "more than an address"),
        ({"url": "https://example.com/v1?key=1"}, "more than an address"),
        ({"prompt": "Grade {source}"}, "must have {answer}"),
        ({"prompt": "Grade {answer} {reference}"}, "must have {answer}"),
        ({"prompt": "Grade {answer"}, "malformed"),
        ({"scale": [5, 1]}, "not below"),
        ({"scale": [1]}, "at least 2"),
        ({"key_variable": "sk-123"}, "pattern"),
        ({"timeout": 0}, "greater than 0"),
        ({"temperature": 1}, "not permitted"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        settings(**{"url": "https://example.com/v1"} | change)


def test_the_metric_needs_the_key_of_its_name() -> None:
    with pytest.raises(ValueError, match="the metric judge requires the key judge"):
        Evaluate(metrics=["judge"])


def test_an_evaluation_records_the_judge_and_sends_nothing_twice(
    make_task: Callable[..., Path], tiny_base: Path
) -> None:
    with judge_server(lambda prompt: "no" if "Source: t eee" in prompt else "3") as server:
        judge = {"url": server.url, "model": "big", "prompt": PROMPT}
        task = make_task(evaluate={"metrics": ["rouge", "judge"], "judge": judge, "bootstrap": 100})
        file = task.parent / "answers.jsonl"
        result = evaluate(str(tiny_base), task=task, predictions=file)
        assert len(server.requests) == 6
        again = evaluate(str(tiny_base), task=task, baseline=True)
        assert len(server.requests) == 6
        plain = make_task(name="plain", evaluate={"judge": judge, "bootstrap": 100})
        assert "judge" not in evaluate(str(tiny_base), task=plain).scores
        assert len(server.requests) == 6
    assert result.scores["judge"].mean == again.scores["judge"].mean == 50
    record = result.as_dict()["records"]["judge"]
    assert record["prompt"] == PROMPT and record["graded"] + record["unreadable"] == 6 and record["unreadable"] > 0
    expected = f"the judge graded {record['graded']} of 6 answers (0 refused, {record['unreadable']} unreadable)"
    assert any(expected in warning for warning in result.warnings)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(line["judge"], line["judge_reply"]) for line in lines} == {(50.0, "3"), (None, "no")}


def test_the_own_server_can_judge(tmp_path: Path) -> None:
    checkpoint = save_tiny_t5(tmp_path / "checkpoint")
    grades = ("1", "2", "3", "4", "5")
    chat = {"context": 2, "characters": 100}
    make_bundle(checkpoint, tmp_path / "judge", template="{context}", chat=chat, labels=grades)
    engine: Any = AsyncModel(Generator.load(tmp_path / "judge", threads=1))
    with serving({"judge": engine}) as running:
        judge = {"url": f"{running.url}/v1", "model": "judge", "prompt": "Grade: {answer}"}
        own = Evaluate.model_validate({"metrics": ["judge"], "judge": judge})
        scored = measure(["judge"], ["a cat", "two dogs"], [["t"]] * 2, own, ["s"] * 2)["judge"]
    assert set(scored.details["judge_reply"]) <= set(grades)
    assert scored.rows == pytest.approx([25 * (int(reply) - 1) for reply in scored.details["judge_reply"]])
