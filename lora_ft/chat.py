"""The job `chat`: a model goes on with a group chat, line by line; a person may take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.data.chats.lines import Line, context_of, parse_line, parse_lines
from lora_ft.models.model import Model

CONTEXT, CHARACTERS = 10, 1500  # of a model that does not say
_ATTEMPTS = 4  # draws before a line that is of no use is taken or given up
_SEEDS = 1_000_003  # between those of two conversations
HELP = "an empty line lets the model go on; /who: who is there; /quit or Ctrl-D: end"


@dataclass(frozen=True)
class Event:
    """What came of a line or a round.

    Attributes:
        line: what somebody says now, or None.
        note: what is to be told besides, or "".
        end: whether the conversation is over.
    """

    line: Line | None = None
    note: str = ""
    end: bool = False


class Conversation:
    """The last lines of a chat, and what comes next.

    Attributes:
        lines: the context, oldest first; a new line joins at the end, and the oldest leaves.
        you: whom the person speaks as, or None.
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
        """Begin.

        Args:
            ask: the answer to a context, drawn with a seed.
            start: what was said before.
            you: whom the person speaks as.
            context, characters: most lines of the context, and characters of them together.
            seed: of the conversation; each draw has its own.
            attempts: draws before a line that is of no use is taken or given up; 1 where each draw is the same.
        """
        self.lines = list(start)[-context:]
        self.you = you
        self._ask, self._context, self._characters, self._attempts = ask, context, characters, attempts
        self._seed = _SEEDS * seed

    @property
    def people(self) -> list[str]:
        """Who speaks in the context, in order of their first line, and you."""
        return list(dict.fromkeys([*(line.name for line in self.lines), *([self.you] if self.you else [])]))

    def respond(self, typed: str | None) -> Iterator[Event]:
        """What comes of a line that a person typed: commands are obeyed, else it joins and the model answers.

        Args:
            typed: the line; without `you` it names its speaker (`Name: text`). None is the end of the input.
        """
        text = "/quit" if typed is None else typed.strip()
        if text == "/quit":
            yield Event(end=True)
        elif text == "/who":
            yield Event(note=", ".join(self.people) or "nobody has spoken yet")
        elif text.startswith("/"):
            yield Event(note=f"there is no command {text.split()[0]}; {HELP}")
        elif not text and not self.lines:
            yield Event(note="nobody has spoken yet; type a line first")
        elif text and (line := Line(self.you, text) if self.you else parse_line(text)) is None:
            yield Event(note="who says this? Type `Name: text`, or start with --as NAME")
        else:
            if text and line is not None:
                self._join(line)
            yield self.go_on()

    def go_on(self) -> Event:
        """The model's next line, which joins the context.

        A line without a name, without a text or in the name of `you` is drawn again. If none is better, one in your
        name stands as it is, one without a name is taken as said by whoever of the others spoke last, and an empty one
        is none.
        """
        context = context_of(self.lines, self._characters)
        said, line = "", None
        for _ in range(self._attempts):
            text = self._ask(context, self._seed).strip()
            self._seed += 1
            found = parse_line(text)
            if found is not None and found.name != self.you:
                return self._joined(found)
            said, line = (text, found) if found else (said or text, line)
        if line is not None:
            return self._joined(line, "the model speaks for you")
        if not said:
            return Event(note="the model said nothing")
        name = next((line.name for line in reversed(self.lines) if line.name != self.you), "Somebody")
        return self._joined(Line(name, said), f"the model named nobody; taken as said by {name}")

    def rounds(self, count: int) -> Iterator[Event]:
        """The model alone, `count` lines; fewer where it says nothing, as it then would for ever."""
        for _ in range(count):
            event = self.go_on()
            yield event
            if event.line is None:
                return

    def _joined(self, line: Line, note: str = "") -> Event:
        self._join(line)
        return Event(line, note)

    def _join(self, line: Line) -> None:
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
    """A conversation with a model.

    Args:
        model: from `load`; what its task says of chats goes for it.
        options: of generation, by transformers' names; they take precedence over the task's own.
        start: `Name: text` lines that were said before.
        you: whom the person speaks as.
        context: most lines of a context, instead of the task's.
        seed: of the conversation.

    Raises:
        UsageError: the model's prompt takes no bare text, or `start` has no line with a name.
    """
    if model.prompt is None or model.prompt.single is None:
        there = model.adapters
        others = f", or --adapter NAME: there are {', '.join(there)}" if there else ""
        raise UsageError(
            f"{model.name} was not trained on chats", f"give a run or a bundle of a task with data.chat{others}"
        )
    said = parse_lines(start)
    if start.strip() and not said:
        raise UsageError(f"--start {start.strip().splitlines()[0]!r} is no line of a chat", "write `Name: text` lines")
    settings = model.chat or {}
    sampled = {**model.options, **options}.get("do_sample", False)
    return Conversation(
        lambda text, draw: model.generate(text, **{**options, "seed": draw})[0],
        start=said,
        you=you,
        context=context or settings.get("context", CONTEXT),
        characters=settings.get("characters", CHARACTERS),
        seed=seed,
        attempts=_ATTEMPTS if sampled else 1,
    )
