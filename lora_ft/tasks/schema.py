"""Schema of a task: what to adapt a base to, and how. `lora_ft.tasks.files` reads tasks from YAML.

Names are transformers' and peft's where they mean the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import sampling_options
from lora_ft.core.prompt import Prompt
from lora_ft.tasks.card import Card
from lora_ft.tasks.data import Data
from lora_ft.tasks.error_details import InvalidTaskError, error_details, shown
from lora_ft.tasks.evaluate import Evaluate
from lora_ft.tasks.fields import Section
from lora_ft.tasks.generate import Generate
from lora_ft.tasks.lengths import Lengths
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.metric_names import SCORES_OF
from lora_ft.tasks.train import MAX_RATE, Train

SPLITS = ("train", "validation", "test")
AUTO = "auto"
MAX_LABELS = 10_000
SplitName = Literal["train", "validation", "test"]


class Task(Section):
    """One task, with every default filled in.

    In Python, sections may be dicts, and rows of `data` lists of dicts, a `datasets.Dataset` or a pandas frame. An
    invalid task raises `InvalidTaskError`, a `TaskError`.
    """

    if TYPE_CHECKING:

        def __init__(
            self, *, name: str, prompt: str, data: Data | Mapping[str, Any], base: str = ..., **sections: Any
        ) -> None: ...

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    """Name of the task and of the run's folder: letters, digits, . _ -"""
    base: str = "google/flan-t5-small"
    """Hub name, path of a checkpoint, or `offline`."""
    method: Literal["lora", "full"] = "lora"
    """lora: train an adapter on the frozen base. full: train every weight; use a learning rate of 1e-4 to 3e-4."""
    data: Data
    prompt: str
    """Prompt template, with {column} in place of a row's text."""
    codec: Literal["none", "text", "json"] = "none"
    """Encoding of prompts and targets before T5's tokenizer, which has no newline, tab, indentation or brace.

    text: any text, with marks from the vocabulary for missing characters. json: targets are JSON values (text, or
    objects and lists in jsonl rows), in a form with few quotes and no braces; prompts as with text. Answers are decoded
    to their original characters. `lengths` counts encoded tokens.
    """
    labels: list[str] | Literal["auto"] | None = None
    """Allowed targets, for classification. auto: the distinct targets of the training rows."""
    lengths: Lengths = Lengths()
    lora: Lora = Field(default_factory=lambda: Lora.model_validate({}))
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    card: Card = Card()

    @field_validator("prompt")
    @classmethod
    def _names_a_column(cls, value: str) -> str:
        try:
            Prompt(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fits_itself(self) -> Task:
        generate = self.generate
        if (generate.min_new_tokens or 0) > self.max_new_tokens:
            named = "generate.max_new_tokens" if generate.max_new_tokens else "lengths.target"
            raise ValueError(
                f"generate.min_new_tokens is {generate.min_new_tokens}, more than {named} = {self.max_new_tokens}; "
                "lower it"
            )
        if generate.do_sample is None and (names := sampling_options(generate.model_dump())):
            raise ValueError(
                f"generate.{names[0]} has no effect without sampling; set generate.do_sample to true, or remove it"
            )
        if generate.do_sample and (generate.num_beams or 1) > 1:
            raise ValueError("generate.do_sample and generate.num_beams exclude each other; choose sampling or beams")
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Task:
        if (rate := self.train.learning_rate * (self.lora.loraplus_lr_ratio or 1)) > MAX_RATE:
            raise ValueError(
                f"train.learning_rate times lora.loraplus_lr_ratio is {rate:g}, more than {MAX_RATE:g}; lower one"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Task:
        if self.method == "full":
            for name in ("quantization", "loraplus_lr_ratio", "trainable_token_indices"):
                if getattr(self.lora, name):
                    raise ValueError(f"lora.{name} has no effect with method full; remove it, or set method: lora")
        return self

    @property
    def base_dropout(self) -> float | None:
        """Dropout rate inside the base; None for its own rate."""
        rate = self.train.base_dropout
        return 0.0 if rate is None and self.method == "lora" else rate

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str] | str | None) -> list[str] | str | None:
        if not isinstance(value, list):
            return value
        if len(value) < 2:
            raise ValueError(f"at least two labels are required (got {len(value)}); add one, or set labels: auto")
        if len(value) > MAX_LABELS:
            raise ValueError(f"at most {MAX_LABELS} labels may be listed (got {len(value)}); leave labels out")
        distinct = set[str]()
        for label in value:
            if not label or label != label.strip():
                raise ValueError(f"the label {shown(label)} is empty or has surrounding blanks; remove them")
            if label in distinct:
                raise ValueError(f"the label {shown(label)} is listed twice; remove one")
            distinct.add(label)
        return value

    @model_validator(mode="after")
    def _fits_schema(self) -> Task:
        if self.generate.json_schema is not None:
            if self.labels is not None:
                raise ValueError("labels and generate.json_schema exclude each other; remove one")
            for name in ("min_new_tokens", "no_repeat_ngram_size"):
                if self.generate.constrained and getattr(self.generate, name):
                    raise ValueError(f"generate.{name} may leave no token of a valid answer; remove it")
        return self

    @model_validator(mode="after")
    def _fits_labels(self) -> Task:
        if self.labels is not None and self.codec == "json":
            raise ValueError("labels are text, not JSON; remove codec: json")
        if self.labels is None and self.data.oversample:
            raise ValueError("data.oversample requires labels; list them, or set labels: auto")
        selected = [
            ("train.metric_for_best_model", self.train.metric_for_best_model),
            ("evaluate.metric", self.evaluate.metric),
            *(("evaluate.metrics", name) for name in self.evaluate.metrics),
        ]
        for key, metric in selected:
            if self.labels is None and metric in ("classification", *SCORES_OF["classification"]):
                raise ValueError(f"{key} = {metric} requires labels; list them, or set labels: auto")
        if self.labels is not None and self.generate.constrained:
            for name in ("min_new_tokens", "no_repeat_ngram_size"):
                if getattr(self.generate, name):
                    raise ValueError(f"generate.{name} may leave no label to answer with; remove it")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _has_no_faults(cls, value: Any, check: ModelWrapValidatorHandler[Task]) -> Task:
        """Raise InvalidTaskError. The last validator of the class, since pydantic runs the later ones outside of it."""
        try:
            return check(value)
        except ValidationError as error:
            raise InvalidTaskError(None, error_details(error, value, {})) from error

    @property
    def known_labels(self) -> list[str]:
        """List of labels; empty without labels, or before `lora_ft.data.splits.with_labels` resolves `auto`."""
        return self.labels if isinstance(self.labels, list) else []

    @property
    def max_new_tokens(self) -> int:
        """Maximum answer length, in tokens."""
        return self.generate.max_new_tokens or self.lengths.target

    @property
    def metrics(self) -> list[str]:
        """Names of `evaluate.metrics`, and those added for JSON answers and labels."""
        structured = self.codec == "json" or self.evaluate.json_schema is not None
        more = [*(["structured"] if structured else []), *(["classification"] if self.labels else [])]
        return list(dict.fromkeys([*self.evaluate.metrics, *more]))

    def generation_options(self) -> dict[str, Any]:
        """Return the task's own generation options, by transformers' names, with max_new_tokens and any labels."""
        options = self.generate.model_dump(exclude_none=True)
        constrained = options.pop("constrained")
        labels = {"labels": self.known_labels if constrained else []} if self.known_labels else {}
        schema = {} if constrained or self.generate.json_schema is None else {"json_schema": False}
        return options | labels | schema | {"max_new_tokens": self.max_new_tokens}

    def scoring_options(self) -> dict[str, Any]:
        """Return the generation options for scoring, with a seed that makes scores of sampled answers reproducible."""
        return {"seed": self.evaluate.seed} | self.generation_options()

    def chat_settings(self) -> dict[str, Any] | None:
        """Return the settings for continuing a chat, or None if the rows are not from chats."""
        chat = self.data.chat
        if chat is None:
            return None
        return {"context": chat.context, "characters": chat.characters}
