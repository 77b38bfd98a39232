"""Load any model that a user can name (a run, a checkpoint, a bundle, a base), ready to generate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import UsageError
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.prompt import Prompt
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.manifest import is_bundle
from lora_ft.models.backends import OnnxBackend, TorchBackend
from lora_ft.models.model import Model, not_a_bank

if TYPE_CHECKING:
    from lora_ft.tasks.schema import Task

SOURCE_LENGTH, MAX_NEW_TOKENS = 512, 128  # for a model without a task


def load(
    model: str | os.PathLike[str],
    *,
    provider: str = "auto",
    adapter: str | None = None,
    base: str | None = None,
    task: Task | None = None,
) -> Model:
    """Load a model: a run, an adapter (merged in memory), a checkpoint, a bundle, a bank or a base.

    A bundle or bank needs no torch.

    Args:
        model: Run, folder, name of a base on the Hub, or "offline".
        provider: Execution provider of a bundle, as for `Generator.load`.
        adapter: Adapter of a bank to answer with. Default: its base.
        base: Base of a run or an adapter. Default: the one that it names.
        task: Task that supplies codec and source length, for an adapter saved by PEFT.

    Raises:
        UsageError, LoraFtError: The model does not exist, or is damaged.
    """
    name = os.fspath(model)
    folder = Path(name)
    if is_bundle(folder):
        _require_no_base(name, base)
        return _of_bundle(name, Generator.load(folder, provider=provider), adapter)
    if adapter is not None:
        raise not_a_bank(name)
    if provider != "auto":
        raise UsageError(f"{name} is no bundle, and --provider is for bundles", "export it first")
    _require_torch(name)
    from lora_ft.models.peft_adapter import holds_adapter

    if holds_adapter(folder):
        return _open_adapter(name, base, task)
    _require_no_base(name, base)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UsageError(
            f"{name} is neither a run, an adapter, a checkpoint nor a bundle", "give the folder that a job wrote"
        )
    return _open_checkpoint(name)


def _of_bundle(name: str, generator: Generator, adapter: str | None) -> Model:
    own = generator.of(adapter)
    called = name if adapter is None else f"{name} ({adapter})"
    return Model(
        "bundle",
        called,
        OnnxBackend(generator, adapter),
        own.prompt,
        dict(own.defaults),
        chat=own.chat,
        adapter=adapter,
    )


def _require_no_base(name: str, base: str | None) -> None:
    if base is not None:
        raise UsageError(f"{name} has no adapter to put on --base", "leave out --base")


def _open_adapter(name: str, base: str | None, asked: Task | None) -> Model:
    from lora_ft.models.merging import merge_in_memory
    from lora_ft.models.peft_adapter import PeftAdapter, open_adapter

    run = open_adapter(name)
    merged = merge_in_memory(run, base=base)
    if isinstance(run, PeftAdapter):
        tokenizer, _ = run.tokenizer(merged.base, asked.codec if asked else "none")
        engine = TorchBackend(_placed(merged.model), tokenizer, asked.lengths.source if asked else SOURCE_LENGTH)
        notice = "; ".join(filter(None, [merged.base.notice, run.notice]))
        return Model("adapter", name, engine, None, {"max_new_tokens": MAX_NEW_TOKENS} | engine.own, notice)
    task = run.task
    engine = TorchBackend(_placed(merged.model), merged.tokenizer, task.lengths.source)
    options = engine.own | task.generation_options()
    return Model("run", name, engine, Prompt(task.prompt), options, merged.base.notice, task, task.chat_settings())


def _open_checkpoint(name: str) -> Model:
    from lora_ft.models.bases import find_base, load_model, load_tokenizer
    from lora_ft.runs.run import TASK
    from lora_ft.tasks.files import load_task

    base = find_base(name)
    task = load_task(base.folder / TASK) if (base.folder / TASK).is_file() else None
    length = task.lengths.source if task else SOURCE_LENGTH
    tokenizer = load_tokenizer(base.folder, task.codec if task else "none")
    engine = TorchBackend(_placed(load_model(base.folder)), tokenizer, length)
    return Model(
        "checkpoint" if Path(name).is_dir() else "base",
        name,
        engine,
        Prompt(task.prompt) if task else None,
        {"max_new_tokens": MAX_NEW_TOKENS} | engine.own | (task.generation_options() if task else {}),
        base.notice,
        task,
        task.chat_settings() if task else None,
    )


def _placed(model: Any) -> Any:
    """Return the model on the GPU if there is one, or else on the CPU, with all threads that this process may use."""
    import torch

    if torch.cuda.is_available():
        return model.to("cuda")
    torch.set_num_threads(allowed_cpus())
    return model


def _require_torch(name: str) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise UsageError(f"{name} is no bundle, and other models need torch", "pip install 'lora-ft[train]'")
