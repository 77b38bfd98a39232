"""Text settings of a task (prompt, codec, lengths, labels, options), stored with every model trained on it."""

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
    """Text settings of one task.

    Attributes:
        tokenizer: Tokenizer of the model, with the task's codec.
        prompt: Prompt of the task, or None without a task.
        source_length: Maximum prompt length, in tokens. Longer prompts are truncated.
        chat: Chat settings, or None if the task is not a chat.
        labels: The only allowed answers, or () if every answer is allowed.
        allowed: Labels as token ids, without </s>.
        defaults: Default generation options of the task.
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
        """Create settings from the content of a prompt.json and generation options.

        Args:
            task: Content of the prompt.json.
            defaults: Default generation options of the task.
            tokenizer: Tokenizer of the model.

        Raises:
            UsageError: The prompt is malformed, or the codec does not exist.
            LoraFtError: A value has the wrong type.
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
    """Raise LoraFtError if a value of a prompt.json has a different type than `prompt_of` writes."""
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
