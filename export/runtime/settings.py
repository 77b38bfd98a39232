"""What a task says of its texts: prompt, codec, lengths, labels and options, as they travel with what it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_ft.core.codecs import codec_named
from lora_ft.core.errors import LoraFtError
from lora_ft.core.prompt import Prompt
from lora_ft.core.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """Those of one task.

    Attributes:
        tokenizer: the model's, with the task's codec.
        prompt: the task's, or None where there was no task.
        source_length: most tokens of a prompt; what is longer is cut.
        chat: of a task about chats, what going on with one takes besides the prompt; else None.
        labels: of a task that has them: its answers are these and nothing else.
        allowed: the same as tokens, without </s>.
        defaults: its own options of generation.
    """

    tokenizer: Tokenizer
    prompt: Prompt | None
    source_length: int
    chat: dict[str, Any] | None
    labels: tuple[str, ...]
    allowed: list[list[int]]
    defaults: dict[str, Any]

    @classmethod
    def of(cls, task: Mapping[str, Any], defaults: Mapping[str, Any], tokenizer: Tokenizer) -> Settings:
        """From the content of a prompt.json and the options of generation.

        Raises:
            UsageError: the prompt is malformed, or there is no such codec.
            LoraFtError: A value is of another kind than it should be.
        """
        _check(task)
        through = tokenizer.through(codec_named(task["codec"]))
        labels = tuple(task.get("labels", ()))
        return cls(
            tokenizer=through,
            prompt=Prompt(task["template"]) if task["template"] is not None else None,
            source_length=task["source_length"],
            chat=task.get("chat"),
            labels=labels,
            allowed=[row[:-1] for row in through.encode_targets(labels)],
            defaults=dict(defaults),
        )


def _check(task: Mapping[str, Any]) -> None:
    """Raise LoraFtError where the content of a prompt.json is of other kinds than `prompt_of` writes."""
    labels, length = task.get("labels", ()), task["source_length"]
    sound = {
        "template": task["template"] is None or isinstance(task["template"], str),
        "codec": isinstance(task["codec"], str),
        "source_length": type(length) is int and 1 <= length <= 1_000_000,
        "chat": isinstance(task.get("chat"), dict | None),
        "labels": isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels),
    }
    for key in (key for key, is_sound in sound.items() if not is_sound):
        raise LoraFtError(f"{key} of the prompt is malformed (got {task.get(key)!r:.100})", "export the bundle again")
