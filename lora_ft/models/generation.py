"""Generation settings of a PyTorch model: those of the call, the task and the checkpoint, in one order of precedence.

The call takes precedence over the task, and the task over the checkpoint
(`lora_ft.export.checkpoint.generation_config`). The defaults of `Options` come last. transformers would mix in its own
defaults and keep them; `only` prevents both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.labels import label_tokens
from lora_ft.export.checkpoint.generation_config import Generation, generation_of, read_generation
from lora_ft.models.bases import Base

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

_OURS = ("seed", "allowed", "prompt_lookup", "output_scores")  # transformers lacks them, or defines them differently
_OF_SAMPLES = ("temperature", "top_k", "top_p")  # transformers warns about them without sampling


def own_generation(model: Any) -> Generation:
    """Return the special tokens and the settings of a loaded model, with or without an adapter.

    Raises:
        UsageError: A setting is not supported.
    """
    inner = _inner(model)
    config = inner.config.to_dict()
    return generation_of(inner.generation_config.to_diff_dict(), config, "the checkpoint's generation settings")


@contextlib.contextmanager
def only(model: Any, special: SpecialTokens) -> Iterator[None]:
    """Restrict `generate` in a `with` block to the model's special tokens and the options of the call."""
    from transformers import GenerationConfig

    inner = _inner(model)
    kept = inner.generation_config
    inner.generation_config = GenerationConfig(**special.as_config())
    try:
        yield
    finally:
        inner.generation_config = kept


def check_generation(task: Task, base: Base, tokenizer: Tokenizer) -> None:
    """Raise UsageError if a task's answers cannot be generated with the combined settings of base and task.

    Call it before training. Causes are an unsupported setting of the base, settings of base and task that exclude each
    other, and a label that cannot be generated.
    """
    generation = read_generation(base.folder)
    options = {**generation.options, **task.generation_options()}
    labels = options.pop("labels", ())
    try:
        chosen = Options.of(options | ({"allowed": label_tokens(labels, tokenizer)} if labels else {}))
        chosen.check_tokens(base.config["vocab_size"])
    except UsageError as error:
        own = ", ".join(f"{name} = {value}" for name, value in generation.options.items())
        where = f"; the base {base.name} sets {own}" if own else ""
        raise UsageError(f"{error.message}{where}", error.remedy or "Set it in the task's `generate`.") from error


def generation_notes(base: Base, tokenizer: Tokenizer) -> list[str]:
    """Return notes on a base's own settings: their values, and whether its texts end the way its answers do."""
    generation = read_generation(base.folder)
    notes = []
    if generation.options:
        own = ", ".join(f"{name} = {value}" for name, value in generation.options.items())
        notes.append(f"the base generates with {own}, unless the task's `generate` says otherwise")
    if tokenizer.closing not in generation.special.ends:
        notes.append(
            f"the tokenizer closes texts with token {tokenizer.closing}, and eos_token_id of the base is "
            f"{', '.join(map(str, generation.special.ends))}; answers will not end where targets do"
        )
    return notes


def torch_options(options: Options) -> dict[str, Any]:
    """Return options as transformers' `generate` takes them within `only`. The caller handles seed and labels."""
    settings = {
        name: [list(words) for words in value]
        if name == "bad_words_ids"
        else list(value)
        if type(value) is tuple
        else value
        for name, value in vars(options).items()
        if name not in _OURS and value not in (None, ())
    }
    if not options.min_new_tokens:
        del settings["min_new_tokens"]
    return settings if options.do_sample else {name: settings[name] for name in settings if name not in _OF_SAMPLES}


def _inner(model: Any) -> Any:
    """Return the transformers model below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
