"""The names of measured servers."""

from __future__ import annotations

import pytest

from lora_ft.bench.subjects import Subject, subjects_of
from lora_ft.core.errors import UsageError


def test_servers_are_named_by_the_user_or_by_their_source() -> None:
    urls, commands = ["http://127.0.0.1:8000", "vllm=http://host/v1?key=x"], ["/bin/lora-ft serve b --port={port}"]
    subjects = subjects_of(urls, commands, ["plain=banks/b", "banks/b"], ["a0", "a1"], stream=False)
    assert [(subject.name, subject.kind, subject.source) for subject in subjects] == [
        ("http://127.0.0.1:8000", "url", "http://127.0.0.1:8000"),
        ("vllm", "url", "http://host/v1?key=x"),
        ("lora-ft", "command", "/bin/lora-ft serve b --port={port}"),
        ("plain", "engine", "banks/b"),
        ("b without HTTP", "engine", "banks/b"),
    ]
    assert {(subject.models, subject.stream) for subject in subjects} == {(("a0", "a1"), False)}


def test_a_benchmark_needs_a_server() -> None:
    with pytest.raises(UsageError, match="there is no server"):
        subjects_of([], [], [], [], stream=True)


def test_two_servers_may_not_have_one_name() -> None:
    with pytest.raises(UsageError, match="two servers are named 'x'"):
        subjects_of(["x=http://a"], ["x=serve {port}"], [], [], stream=True)
    assert isinstance(subjects_of(["x=http://a"], [], [], [], stream=True)[0], Subject)
