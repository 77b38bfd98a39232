"""Generation settings of a PyTorch model, in one order of precedence.

The call takes precedence over the task, and the task over the checkpoint
(`lora_ft.export.checkpoint.generation_config`). The defaults of `Options` come last. transformers would add its own
defaults to every call, which `without_defaults` prevents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_ft.core.constraint import Constraint, constrained
from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import Options
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.data.labels import label_tokens
from lora_ft.export.checkpoint.generation_config import Generation, generation_of, read_generation
from lora_ft.export.runtime.processors import only_valid
from lora_ft.models.bases import Base

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

# Options that transformers lacks or defines differently.
_LORA_FT_OPTIONS = ("seed", "allowed", "constraint", "mbr", "utility", "prompt_lookup", "output_scores")
# Options that transformers warns about without sampling.
_SAMPLING_OPTIONS = ("temperature", "top_k", "top_p")


def model_generation(model: Any) -> Generation:
    """Return the special tokens and the generation settings of a loaded model, with or without an adapter.

    Raises:
        UsageError: A setting is not supported.
    """
    inner = _inner(model)
    config = inner.config.to_dict()
    return generation_of(inner.generation_config.to_diff_dict(), config, "the checkpoint's generation settings")


@contextlib.contextmanager
def without_defaults(model: Any, special: SpecialTokens) -> Iterator[None]:
    """Restrict `generate` in a `with` block to the model's special tokens and the options of the call."""
    from transformers import GenerationConfig

    inner = _inner(model)
    previous = inner.generation_config
    inner.generation_config = GenerationConfig(**special.as_config())
    try:
        yield
    finally:
        inner.generation_config = previous


def check_generation(task: Task, base: Base, tokenizer: Tokenizer) -> Options:
    """Check before training that a task's answers can be generated, and return the options.

    Raises:
        UsageError: The base has an unsupported setting, settings of base and task exclude each other, or a label cannot
            be generated.
    """
    generation = read_generation(base.folder)
    options = {**generation.options, **task.generation_options()}
    labels = options.pop("labels", ())
    try:
        restricted = options | ({"allowed": label_tokens(labels, tokenizer)} if labels else {})
        combined = Options.of(constrained(restricted, tokenizer))
        combined.check_tokens(base.config["vocab_size"])
        return combined
    except UsageError as error:
        base_settings = ", ".join(f"{name} = {value}" for name, value in generation.options.items())
        suffix = f"; the base {base.name} sets {base_settings}" if base_settings else ""
        raise UsageError(f"{error.message}{suffix}", error.remedy or "set it in the task's `generate`") from error


def generation_notes(base: Base, tokenizer: Tokenizer) -> list[str]:
    """Return notes on a base: its generation settings, and a warning if targets end with another token than answers."""
    generation = read_generation(base.folder)
    notes = []
    if generation.options:
        settings = ", ".join(f"{name} = {value}" for name, value in generation.options.items())
        notes.append(f"the base generates with {settings}, unless the task's `generate` overrides it")
    if tokenizer.closing not in generation.special.ends:
        notes.append(
            f"the tokenizer ends texts with token {tokenizer.closing}, but eos_token_id of the base is "
            f"{', '.join(map(str, generation.special.ends))}; answers will not end where targets do"
        )
    return notes


def torch_options(options: Options) -> dict[str, Any]:
    """Return options for transformers' `generate` in a `without_defaults` block.

    The caller handles seed, labels and schema.
    """
    settings = {
        name: [list(words) for words in value]
        if name == "bad_words_ids"
        else list(value)
        if type(value) is tuple
        else value
        for name, value in vars(options).items()
        if name not in _LORA_FT_OPTIONS and value not in (None, ())
    }
    if not options.min_new_tokens:
        del settings["min_new_tokens"]
    if options.do_sample:
        return settings | ({"num_return_sequences": options.mbr} if options.mbr > 1 else {})
    return {name: value for name, value in settings.items() if name not in _SAMPLING_OPTIONS}


def constraint_processor(constraint: Constraint, special: SpecialTokens) -> Any:
    """Return transformers' logits processor of one batch that forbids tokens unless they continue a valid answer."""
    import torch
    from transformers import LogitsProcessor

    edit = only_valid(constraint, special)

    class OnlyValid(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            edited = edit(input_ids.cpu().numpy(), scores.float().cpu().numpy().copy())
            return torch.from_numpy(edited).to(scores)

    return OnlyValid()


def _inner(model: Any) -> Any:
    """Return the transformers model below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
