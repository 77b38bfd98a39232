"""Load a run, an adapter, a checkpoint, a bundle or a base, ready to generate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.errors import UsageError
from lora_ft.core.hardware import torch_threads
from lora_ft.core.prompt import Prompt
from lora_ft.core.user_paths import expanded
from lora_ft.export.runtime.generator import Generator
from lora_ft.export.runtime.manifest import is_bundle, is_export, not_a_bundle
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

    Bundles and banks do not need torch.

    Args:
        model: Run, folder, name of a base on the Hub, or "offline".
        provider: Execution provider of a bundle, as for `Generator.load`.
        adapter: Adapter of a bank to answer with. Default: its base.
        base: Base of a run or an adapter. Default: the base that it names.
        task: Task with codec and source length, for an adapter saved by PEFT.

    Raises:
        UsageError, LoraFtError: The model does not exist, or is damaged.
    """
    name = os.fspath(model)
    folder = expanded(name)
    if is_bundle(folder):
        _require_no_base(name, base)
        return bundle_model(name, Generator.load(folder, provider=provider), adapter)
    if adapter is not None:
        raise not_a_bank(name)
    if provider != "auto":
        raise UsageError(f"--provider is supported for bundles only, and {name} is not a bundle", "export it first")
    if is_export(folder):
        raise not_a_bundle(folder)
    _require_torch(name)
    from lora_ft.models.peft_adapter import holds_adapter

    if holds_adapter(folder):
        return _open_adapter(str(folder), base, task)
    _require_no_base(name, base)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UsageError(
            f"{name} is neither a run, an adapter, a checkpoint nor a bundle", "pass a folder that lora-ft wrote"
        )
    return _open_checkpoint(name)


def bundle_model(name: str, generator: Generator, adapter: str | None = None) -> Model:
    """Return the model of a loaded bundle or bank."""
    settings = generator.of(adapter)
    title = name if adapter is None else f"{name} ({adapter})"
    return Model(
        "bundle",
        title,
        OnnxBackend(generator, adapter),
        settings.prompt,
        dict(settings.defaults),
        chat=settings.chat,
        adapter=adapter,
    )


def _require_no_base(name: str, base: str | None) -> None:
    if base is not None:
        raise UsageError(f"--base is set, but {name} has no adapter", "leave out --base")


def _open_adapter(name: str, base: str | None, adapter_task: Task | None) -> Model:
    from lora_ft.models.merging import merge_in_memory
    from lora_ft.models.peft_adapter import PeftAdapter, open_adapter

    run = open_adapter(name)
    merged = merge_in_memory(run, base=base)
    if isinstance(run, PeftAdapter):
        tokenizer, _ = run.tokenizer(merged.base, adapter_task.codec if adapter_task else "none")
        engine = TorchBackend(
            _on_device(merged.model), tokenizer, adapter_task.lengths.source if adapter_task else SOURCE_LENGTH
        )
        notice = "; ".join(filter(None, [merged.base.notice, run.notice]))
        return Model("adapter", name, engine, None, {"max_new_tokens": MAX_NEW_TOKENS} | engine.defaults, notice)
    task = run.task
    engine = TorchBackend(_on_device(merged.model), merged.tokenizer, task.lengths.source)
    options = engine.defaults | task.generation_options()
    return Model("run", name, engine, Prompt(task.prompt), options, merged.base.notice, task, task.chat_settings())


def _open_checkpoint(name: str) -> Model:
    from lora_ft.models.bases import find_base, load_model, load_tokenizer
    from lora_ft.runs.run import TASK
    from lora_ft.tasks.files import load_task

    base = find_base(name)
    task = load_task(base.folder / TASK) if (base.folder / TASK).is_file() else None
    length = task.lengths.source if task else SOURCE_LENGTH
    tokenizer = load_tokenizer(base.folder, task.codec if task else "none")
    engine = TorchBackend(_on_device(load_model(base.folder)), tokenizer, length)
    return Model(
        "checkpoint" if Path(name).is_dir() else "base",
        name,
        engine,
        Prompt(task.prompt) if task else None,
        {"max_new_tokens": MAX_NEW_TOKENS} | engine.defaults | (task.generation_options() if task else {}),
        base.notice,
        task,
        task.chat_settings() if task else None,
    )


def _on_device(model: Any) -> Any:
    """Return the model on the GPU if there is one, else on the CPU with the threads of `torch_threads`."""
    import torch

    if torch.cuda.is_available():
        return model.to("cuda")
    torch.set_num_threads(torch_threads())
    return model


def _require_torch(name: str) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise UsageError(
            f"{name} is not a bundle, and torch is not installed, which other models need",
            "pip install 'lora-ft[train]'",
        )
