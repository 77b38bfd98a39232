"""The command `chat`: read lines, and print the model's."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lora_ft.cli.options import (
    Adapter,
    Base,
    DoSample,
    MaxNewTokens,
    NoRepeatNgramSize,
    Provider,
    Quiet,
    RepetitionPenalty,
    SamplingSeed,
    Temperature,
    TopK,
    TopP,
    generation_options,
)
from lora_ft.core.printable import printable
from lora_ft.core.streams import is_terminal, say, stdin_lines
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.chat import Conversation, Event
    from lora_ft.data.chats.lines import Line


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run or bundle trained on a chat.")],
    adapter: Adapter = None,
    base: Base = None,
    you: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Person whom you speak as.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Let the model write this many lines alone, then exit.")
    ] = None,
    start: Annotated[str, typer.Option(metavar="FILE|TEXT", help="First lines of the chat, `Name: text`.")] = "",
    lines: Annotated[
        int | None, typer.Option("--context", min=1, help="Lines that the model sees. Default: the task's.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    do_sample: DoSample = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    seed: SamplingSeed = None,
    provider: Provider = "auto",
    quiet: Quiet = False,
) -> None:
    """Talk with a model trained on a group chat.

    Your lines join the chat, and the model answers as its people. Lines can also come from a pipe.
    """
    from lora_ft.chat import converse
    from lora_ft.core.errors import UsageError
    from lora_ft.generate import new_seed
    from lora_ft.models.loading import load

    options = generation_options(context)
    options.pop("seed", None)
    beginning = _beginning(start)
    if rounds is not None and not beginning:
        raise UsageError("--rounds needs a beginning of the chat", "add --start FILE, or --start 'Name: text'")
    with Screen(quiet=quiet) as screen:
        screen.stage("loading the model")
        opened = load(model, provider=provider, adapter=adapter, base=base)
        drawn = new_seed(opened, options) if seed is None else None
        conversation = converse(
            opened, options, start=beginning, you=you, context=lines, seed=(drawn if seed is None else seed) or 0
        )
    if opened.notice:
        screen.note(opened.notice)
    interactive = rounds is None and is_terminal(sys.stdin)
    if drawn is not None and not interactive:  # nobody types a conversation again to repeat it
        screen.note(f"sampled with seed {drawn}; repeat it with --seed {drawn}")
    if rounds is not None:
        _draw(conversation.rounds(rounds), screen)
    else:
        _talk(conversation, screen)


def _beginning(start: str) -> str:
    """Return the text, or the content of the file of this name."""
    from lora_ft.core.errors import LoraFtError

    path = Path(start)
    try:
        if not start or "\n" in start or not path.is_file():
            return start
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoraFtError(f"--start: {path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except OSError:  # longer than a file name can be
        return start


def _talk(conversation: Conversation, screen: Screen) -> None:
    """Read lines and print answers until the input ends."""
    from lora_ft.chat import HELP

    interactive = is_terminal(sys.stdin)
    if interactive:
        screen.note(HELP)
        for line in conversation.lines:
            _say(line)
    piped = stdin_lines()
    while not _draw(conversation.respond(_read_line(conversation.you) if interactive else next(piped, None)), screen):
        pass


def _read_line(you: str | None) -> str | None:
    """Return the next typed line, or None at the end of the input."""
    try:
        return input(f"{printable(you)}: " if you else "> ")
    except EOFError:
        say("")
        return None


def _draw(events: Iterable[Event], screen: Screen) -> bool:
    """Print lines on stdout and notes on stderr. Return whether the conversation is over."""
    for event in events:
        if event.note:
            screen.note(f"({event.note})")
        if event.line is not None:
            _say(event.line)
        if event.end:
            return True
    return False


def _say(line: Line) -> None:
    from lora_ft.reports.terminal import console

    console().print(Text.assemble((f"{line.name}: ", "bold"), line.text))
    say("", end="", flush=True)
