"""POST /v1/generate: rows of a task, whole and as a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.lora_ft.serving.conftest import Running, serving
from tests.lora_ft.serving.fake_engine import SOURCE_LENGTH, FakeEngine


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_rows_go_through_the_prompt(server: Running) -> None:
    reply = server.post("/v1/generate", model="echo", rows=[{"text": "ab"}, "cd"]).json()
    assert [answer["text"] for answer in reply["answers"]] == ["ba :yas", "dc :yas"]
    assert [(answer["row"], answer["answer"], answer["finish"]) for answer in reply["answers"]] == [
        (0, 0, "stop"),
        (1, 0, "stop"),
    ]
    assert reply["usage"]["completion_tokens"] == sum(answer["tokens"] for answer in reply["answers"])


def test_raw_texts_and_options(server: Running) -> None:
    body = {"raw": True, "max_new_tokens": 2, "do_sample": True, "num_return_sequences": 2, "output_scores": True}
    reply = server.post("/v1/generate", model="echo", rows="abc", **body).json()
    assert [answer["text"] for answer in reply["answers"]] == ["cb", "cb"]
    assert reply["answers"][0]["scores"] == [-0.5, -0.5]
    assert reply["answers"][0]["finish"] == "length"


def test_a_stream_of_several_rows(server: Running) -> None:
    response = server.post("/v1/generate", model="echo", rows=["ab", "cd"], raw=True, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *pieces, last = events(response.text)
    texts = ["".join(piece["text"] for piece in pieces if piece["row"] == row) for row in (0, 1)]
    assert texts == ["ba", "dc"]
    assert last["usage"]["completion_tokens"] == 6


def test_a_long_prompt_is_cut_and_says_so(server: Running) -> None:
    long = "a" * (SOURCE_LENGTH + 10)
    reply = server.post("/v1/generate", model="echo", rows=[long, "b"]).json()
    assert [answer["source_cut"] for answer in reply["answers"]] == [True, False]
    refused = server.post("/v1/completions", model="echo", prompt=long)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "prompt"


def test_probabilities_of_labels(tmp_path: Path) -> None:
    with serving({"kind": FakeEngine(tmp_path / "kind", labels=("yes", "no"))}) as running:
        reply = running.post("/v1/generate", model="kind", rows=["a", "b"], label_scores=True).json()
        assert reply["label_scores"] == [{"yes": 0.5, "no": 0.5}] * 2
        own = running.post("/v1/generate", model="kind", rows=["a"], label_scores=True, labels=["up", "down"]).json()
        assert own["label_scores"] == [{"up": 0.5, "down": 0.5}] and own["answers"][0]["text"] == "up"
        entry = running.get("/v1/models/kind").json()
        assert entry["task"]["labels"] == ["yes", "no"]


def test_label_scores_without_labels_name_the_field(server: Running) -> None:
    response = server.post("/v1/generate", model="echo", rows=["a"], label_scores=True)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "label_scores")


def test_errors_of_the_model_name_the_field(server: Running) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rows": [{"text": "a"}, {"other": "b"}]}, "rows[1]"),
        ({"rows": [{"other": "b"}]}, "rows"),
        ({"rows": ["a"], "min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens"),
        ({"rows": ["a"], "num_beams": 2, "do_sample": True}, "do_sample"),
        ({"rows": ["a"], "num_return_sequences": 2}, "num_return_sequences"),
    ]
    for body, param in cases:
        response = server.post("/v1/generate", model="echo", **body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_rows_of_a_bank_name_their_adapter(tmp_path: Path) -> None:
    bank = FakeEngine(tmp_path / "bank", adapters={"mail": "m {text}", "chat": "c {text}"})
    with serving({"bank": bank}) as running:
        rows = [{"text": "a", "adapter": "mail"}, {"text": "a", "adapter": "chat"}, {"text": "a"}]
        reply = running.post("/v1/generate", model="bank", rows=rows).json()
        assert [answer["text"] for answer in reply["answers"]] == ["a m", "a c", "a :yas"]
        missing = running.post("/v1/generate", model="bank", rows=[{"text": "a", "adapter": "gone"}])
        assert missing.status_code == 404


def test_a_deadline_of_the_request_ends_it(server: Running, engine: FakeEngine) -> None:
    engine.paused = True
    body = {"model": "echo", "rows": "a"}
    response = httpx.post(f"{server.url}/v1/generate", json=body, headers={"X-Request-Timeout": "0.05"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert not engine.running
    stream = httpx.post(
        f"{server.url}/v1/generate", json={**body, "stream": True}, headers={"X-Request-Timeout": "0.05"}
    )
    assert json.loads(stream.text.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert server.line_of(stream)["status"] == 504
    wrong = httpx.post(f"{server.url}/v1/generate", json=body, headers={"X-Request-Timeout": "soon"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-request-timeout")
