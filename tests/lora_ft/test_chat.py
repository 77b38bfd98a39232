"""Conversations: the context, the speakers of lines, and commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_ft.chat import Conversation, Event, converse
from lora_ft.core.errors import UsageError
from lora_ft.core.prompt import Prompt
from lora_ft.data.chats.lines import Line
from lora_ft.export_onnx import export_onnx
from lora_ft.models.loading import load
from lora_ft.runs.run import Run

START = (Line("Ana", "one"), Line("Ben", "two"))


class Script:
    """Return answers from a list, and record contexts and seeds."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.contexts, self.seeds = list(answers), list[str](), list[int]()

    def __call__(self, context: str, seed: int) -> str:
        self.contexts.append(context)
        self.seeds.append(seed)
        return self.answers.pop(0)


def test_an_answer_replaces_the_oldest_line() -> None:
    script = Script("Cleo: three", "Ana: four\nand more")
    talk = Conversation(script, start=START, context=2)
    assert list(talk.rounds(2)) == [Event(Line("Cleo", "three")), Event(Line("Ana", "four\nand more"))]
    assert script.contexts == ["Ana: one\nBen: two", "Ben: two\nCleo: three"]
    assert talk.lines == [Line("Cleo", "three"), Line("Ana", "four\nand more")]


def test_a_typed_line_is_answered() -> None:
    script = Script("Ben: hello")
    talk = Conversation(script, start=START, you="Ana")
    assert list(talk.respond(" good morning: all \n")) == [Event(Line("Ben", "hello"))]
    assert script.contexts == ["Ana: one\nBen: two\nAna: good morning: all"]
    assert talk.people == ["Ana", "Ben"]


def test_without_a_user_name_a_line_names_its_speaker() -> None:
    talk = Conversation(Script("Ben: hello"))
    assert "--as NAME" in next(talk.respond("good morning")).note and not talk.lines
    assert list(talk.respond("Cleo: good morning")) == [Event(Line("Ben", "hello"))]
    assert talk.lines[0] == Line("Cleo", "good morning")


def test_an_empty_line_lets_the_model_continue() -> None:
    talk = Conversation(Script("Cleo: three"), start=START, you="Ana")
    assert list(talk.respond("\n")) == [Event(Line("Cleo", "three"))]
    assert "nobody has spoken" in next(Conversation(Script(), you="Ana").respond("")).note


def test_commands() -> None:
    talk = Conversation(Script(), start=START, you="Cleo")
    assert list(talk.respond("/who")) == [Event(note="Ana, Ben, Cleo")]
    assert list(talk.respond("/quit")) == list(talk.respond(None)) == [Event(end=True)]
    assert "unknown command /fly" in next(talk.respond("/fly away")).note
    assert talk.lines == list(START)
    assert next(Conversation(Script()).respond("/who")).note == "nobody has spoken yet"


def test_an_unusable_line_is_sampled_again_with_another_seed() -> None:
    script = Script("", "no name", "Ana: as you", "Ben: good")
    talk = Conversation(script, start=START, you="Ana", seed=3)
    assert talk.advance() == Event(Line("Ben", "good"))
    assert len(set(script.seeds)) == 4 and not set(script.seeds) & set(range(4))


def test_the_last_attempt_uses_the_best_line() -> None:
    nameless = Conversation(Script("", "no name"), start=START, you="Ben", attempts=2).advance()
    assert nameless.line == Line("Ana", "no name") and "named no speaker; attributed to Ana" in nameless.note
    lonely = Conversation(Script("no name"), start=[Line("Ben", "hm")], you="Ben", attempts=1).advance()
    assert lonely.line == Line("Somebody", "no name")
    yours = Conversation(Script("Ben: mine", ""), start=START, you="Ben", attempts=2).advance()
    assert yours.line == Line("Ben", "mine") and yours.note == "the model wrote a line in your name"
    silent = Conversation(Script("", " \n"), start=START, attempts=2)
    assert silent.advance() == Event(note="the model wrote nothing") and silent.lines == list(START)


def test_rounds_end_at_an_empty_line() -> None:
    talk = Conversation(Script("Ana: a", "", "Ana: never"), start=START, attempts=1)
    assert [event.line for event in talk.rounds(3)] == [Line("Ana", "a"), None]


def load_recorded(name: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """Return a model, and a list to which it adds every prompt that it answers."""
    model, recorded = load(str(name)), []
    answer = model.backend.generate

    def record(prompts: list[str], *args: Any, **kwargs: Any) -> Any:
        recorded.extend(prompts)
        return answer(prompts, *args, **kwargs)

    monkeypatch.setattr(model.backend, "generate", record)
    return model, recorded


def test_a_run_and_its_bundle_store_the_chat_settings(
    chat_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(str(chat_run.folder), tmp_path / "bundle")
    for name in (chat_run.folder, tmp_path / "bundle"):
        model, prompts = load_recorded(name, monkeypatch)
        assert model.chat == chat_run.task.chat_settings()
        talk = converse(model, {}, start="A: 1\nB: 2\nA: 3\nB: 4", seed=1)
        event = talk.advance()
        assert prompts[0] == "Continue writing the following text.\n\nB: 2\nA: 3\nB: 4"
        assert len(prompts) == (1 if event.line and not event.note else 4)  # it samples, so it may draw again
        again = converse(model, {}, start="A: 1\nB: 2\nA: 3\nB: 4", seed=1)
        assert again.advance() == event


def test_options_take_precedence(chat_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = load_recorded(chat_run.folder, monkeypatch)
    converse(model, {"do_sample": False}, start="A: 1\nB: 2", context=1).advance()
    assert prompts == ["Continue writing the following text.\n\nB: 2"]


def test_unsuitable_models_and_beginnings_are_refused(tiny_base: Path, tiny_run: Run, chat_run: Run) -> None:
    for other in (tiny_base, tiny_run.folder):  # the prompt of this run has one column, as that of a chat
        with pytest.raises(UsageError, match=r"was not trained on chats; name a run .* or use `lora-ft generate`"):
            converse(load(str(other)), {})
    several = replace(load(str(chat_run.folder)), prompt=Prompt("{sender} {context}"))
    with pytest.raises(UsageError, match="has several columns"):
        converse(several, {})
    with pytest.raises(UsageError, match=r"--start 'good morning' is not a chat line; write `Name: text` lines"):
        converse(load(str(chat_run.folder)), {}, start="good morning\n")
