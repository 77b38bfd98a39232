"""The verb `chat`: a model continues a group chat line by line, and a person may take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.lines import Line, context_of, parse_line, parse_lines
from lora_ft.models.model import Model

CONTEXT, CHARACTERS = 10, 1500  # limits for a model that stores none
_ATTEMPTS = 4  # samples before an unusable line is accepted or dropped
_SEEDS = 1_000_003  # distance between the seeds of two conversations
HELP = "empty line: let the model continue; /who: list people; /quit or Ctrl-D: exit"


@dataclass(frozen=True)
class Event:
    """Result of a typed line or of a round.

    Attributes:
        line: New line of the chat, or None.
        note: Message to the user, or "".
        end: Whether the conversation is over.
    """

    line: Line | None = None
    note: str = ""
    end: bool = False


class Conversation:
    """A chat with a model. The model sees the last lines, and each new line replaces the oldest.

    Attributes:
        lines: Lines that the model sees, oldest first.
        you: Name of the user in the chat, or None.
    """

    def __init__(
        self,
        ask: Callable[[str, int], str],
        *,
        start: Sequence[Line] = (),
        you: str | None = None,
        context: int = CONTEXT,
        characters: int = CHARACTERS,
        seed: int = 0,
        attempts: int = _ATTEMPTS,
    ) -> None:
        """Begin a conversation.

        Args:
            ask: Function from a context and a seed to the model's answer.
            start: Earlier lines of the chat.
            you: Name of the user in the chat.
            context: Maximum number of lines of the context.
            characters: Maximum length of the context, in characters.
            seed: Seed of the conversation. Each answer has a seed of its own.
            attempts: Samples before an unusable line is accepted or dropped; 1 if the seed changes nothing.
        """
        self.lines = list(start)[-context:]
        self.you = you
        self._ask, self._context, self._characters, self._attempts = ask, context, characters, attempts
        self._seed = _SEEDS * seed

    @property
    def people(self) -> list[str]:
        """Return the speakers of the context in order of their first line, then `you`."""
        return list(dict.fromkeys([*(line.name for line in self.lines), *([self.you] if self.you else [])]))

    def respond(self, typed: str | None) -> Iterator[Event]:
        """Run a typed command, or add a typed line and let the model answer.

        Args:
            typed: Line that the user typed. Without `you` it names its speaker (`Name: text`). None ends the chat.
        """
        text = "/quit" if typed is None else typed.strip()
        if text == "/quit":
            yield Event(end=True)
        elif text == "/who":
            yield Event(note=", ".join(self.people) or "nobody has spoken yet")
        elif text.startswith("/"):
            yield Event(note=f"unknown command {text.split()[0]}; {HELP}")
        elif not text and not self.lines:
            yield Event(note="nobody has spoken yet; type a line first")
        elif text and (line := Line(self.you, text) if self.you else parse_line(text)) is None:
            yield Event(note="the line has no speaker; type `Name: text`, or start with --as NAME")
        else:
            if text and line is not None:
                self._append(line)
            yield self.advance()

    def advance(self) -> Event:
        """Let the model write the next line, and add it to the context.

        A line without a name, without a text or in the name of `you` is sampled again. After the last attempt, a line
        in your name is accepted. A line without a name is attributed to the last other speaker. An empty line is
        dropped.
        """
        context = context_of(self.lines, self._characters)
        nameless, own_line = "", None
        for _ in range(self._attempts):
            text = self._ask(context, self._seed).strip()
            self._seed += 1
            line = parse_line(text)
            if line is not None and line.name != self.you:
                return self._added(line)
            if line is not None:
                own_line = line
            else:
                nameless = nameless or text
        if own_line is not None:
            return self._added(own_line, "the model wrote a line in your name")
        if not nameless:
            return Event(note="the model wrote nothing")
        name = next((line.name for line in reversed(self.lines) if line.name != self.you), "Somebody")
        return self._added(Line(name, nameless), f"the model named no speaker; attributed to {name}")

    def rounds(self, count: int) -> Iterator[Event]:
        """Let the model write up to `count` lines. An empty line ends the rounds, since more would follow."""
        for _ in range(count):
            event = self.advance()
            yield event
            if event.line is None:
                return

    def _added(self, line: Line, note: str = "") -> Event:
        self._append(line)
        return Event(line, note)

    def _append(self, line: Line) -> None:
        self.lines = [*self.lines, line][-self._context :]


def converse(
    model: Model,
    options: Mapping[str, Any],
    *,
    start: str = "",
    you: str | None = None,
    context: int | None = None,
    seed: int = 0,
) -> Conversation:
    """Return a conversation with a model.

    Args:
        model: Model from `load`. Its task sets the limits of the context.
        options: Generation options by transformers' names. They take precedence over those of the task.
        start: Earlier lines of the chat, `Name: text`.
        you: Name of the user in the chat.
        context: Maximum number of lines of the context. Default: the task's.
        seed: Seed of the conversation.

    Raises:
        UsageError: The model's task is not a chat, its prompt has several columns, or `start` has no line with a name.
    """
    settings = _chat_settings(model)
    earlier = parse_lines(start)
    if start.strip() and not earlier:
        first = start.strip().splitlines()[0]
        raise UsageError(
            f"--start {first!r} is not a chat line", "write `Name: text` lines, or correct the path of a file with them"
        )
    sampled = {**model.options, **options}.get("do_sample", False)
    return Conversation(
        lambda text, seed: model.generate(text, **{**options, "seed": seed})[0],
        start=earlier,
        you=you,
        context=context or settings.get("context", CONTEXT),
        characters=settings.get("characters", CHARACTERS),
        seed=seed,
        attempts=_ATTEMPTS if sampled else 1,
    )


def _chat_settings(model: Model) -> Mapping[str, Any]:
    """Return the settings of a chat task; raise UsageError if the model has another task, as the server does."""
    if model.chat is None:
        names = ", ".join(model.adapters)
        choice = f", add --adapter NAME (adapters: {names})" if names and model.adapter is None else ""
        raise UsageError(
            f"{model.name} was not trained on chats",
            f"name a run or a bundle of a task with data.chat{choice}, or use `lora-ft generate`",
        )
    if model.prompt is None or model.prompt.single is None:
        raise UsageError(
            f"the prompt of {model.name} has several columns, and a conversation has one",
            "train with a prompt whose only column is context",
        )
    return model.chat
