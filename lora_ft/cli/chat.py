"""The verb `chat`: what is typed and what is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lora_ft.core.printable import printable
from lora_ft.core.streams import is_terminal, say, stdin_lines
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.chat import Conversation, Event
    from lora_ft.data.chats.lines import Line


def chat(
    model: Annotated[str, typer.Argument(metavar="RUN|BUNDLE", help="A model that was trained on a chat.")],
    adapter: Annotated[str | None, typer.Option(help="Of a bank: which one talks.")] = None,
    you: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Whom you speak as.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Let the model speak so many times by itself, then end.")
    ] = None,
    start: Annotated[str, typer.Option(metavar="FILE|TEXT", help="What was said before, in `Name: text` lines.")] = "",
    context: Annotated[int | None, typer.Option(min=1, help="Lines the model sees; by default the task's.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    do_sample: Annotated[bool | None, typer.Option("--do-sample/--greedy", help="By default as the task says.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(min=0)] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="Seed of sampling; the same seed and lines give the same chat."),
    ] = None,
    provider: Annotated[str, typer.Option(help="Of a bundle: cpu, cuda or auto.")] = "auto",
) -> None:
    """Talk with a group chat: your lines join it, the model answers as its people. Lines also come from a pipe."""
    from lora_ft.chat import converse
    from lora_ft.core.errors import UsageError
    from lora_ft.generate import drawn_seed
    from lora_ft.models.loading import open_model

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }
    given = {name: value for name, value in options.items() if value is not None}
    said = _start(start)
    if rounds is not None and not said:
        raise UsageError("--rounds needs something to go on with", "add --start FILE, or --start 'Name: text'")
    with Screen() as screen:
        screen.stage("loading the model")
        opened = open_model(model, provider=provider, adapter=adapter)
        drawn = drawn_seed(opened, given) if seed is None else None
        chosen = drawn if seed is None else seed
        conversation = converse(opened, given, start=said, you=you, context=context, seed=chosen or 0)
    if opened.notice:
        screen.note(opened.notice)
    if drawn is not None:
        screen.note(f"sampled with seed {drawn}; repeat it with --seed {drawn}")
    if rounds is not None:
        _draw(conversation.rounds(rounds), screen)
    else:
        _talk(conversation, screen)


def _start(start: str) -> str:
    """The text, or that of the file of this name."""
    from lora_ft.core.errors import LoraFtError

    path = Path(start)
    try:
        if not start or "\n" in start or not path.is_file():
            return start
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoraFtError(f"--start: {path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except OSError:  # too long for the name of a file
        return start


def _talk(conversation: Conversation, screen: Screen) -> None:
    """Line by line, until the input ends."""
    from lora_ft.chat import HELP

    live = is_terminal(sys.stdin)
    if live:
        screen.note(HELP)
        for line in conversation.lines:
            _say(line)
    piped = stdin_lines()
    while not _draw(conversation.respond(_typed(conversation.you) if live else next(piped, None)), screen):
        pass


def _typed(you: str | None) -> str | None:
    """Ask for the next line; None at the end of the input."""
    try:
        return input(f"{printable(you)}: " if you else "> ")
    except EOFError:
        say("")
        return None


def _draw(events: Iterable[Event], screen: Screen) -> bool:
    """Lines to stdout, notes to stderr. Returns whether the conversation is over."""
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
