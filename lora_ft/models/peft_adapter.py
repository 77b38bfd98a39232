"""Adapters saved by PEFT without lora-ft, accepted in place of a run. They name their base, but have no task."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import peft

from lora_ft.core.codecs import codec_named
from lora_ft.core.errors import BaseMismatchUsageError, UsageError
from lora_ft.core.files import read_json
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.checkpoint.weight_files import has_weights
from lora_ft.models.adapter_files import adapter_config, find_adapter, lora_config, unknown_keys
from lora_ft.models.bases import Base, find_base, load_tokenizer
from lora_ft.runs.run import ADAPTER, CONFIG, TASK, Run, is_run

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_ADDED = "added_tokens.json"  # written by transformers 4 for tokenizers in Python


class PeftAdapter:
    """An adapter in a PEFT folder, without a task.

    Attributes:
        folder, adapter: Folder of the adapter.
        name: Name of the folder, restricted to characters that are valid in every name.
        base: Name of its base according to its config, or "".
        revision: Commit, tag or branch of its base on the Hub that its config names, or "".
        notice: A warning for its users, or "".
    """

    task = None

    def __fspath__(self) -> str:
        return str(self.folder)

    def __init__(self, folder: Path) -> None:
        lora_config(folder)
        self.folder = self.adapter = folder
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip("._-") or "adapter"
        self.base, self.revision = (
            str(adapter_config(folder).get(key) or "") for key in ("base_model_name_or_path", "revision")
        )
        unknown = unknown_keys(folder)
        self.notice = (
            f"{folder / CONFIG} has keys that are unknown to peft {peft.__version__} and ignored: {', '.join(unknown)}"
            if unknown
            else ""
        )
        self.metrics: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}

    def find_base(self, name: str | None = None) -> Base:
        """Return the adapter's base, or the base `name`, in a local folder.

        Raises:
            UsageError: The config names no base or one revision of it, or the base is not available on this machine.
        """
        if not (name or self.base):
            raise UsageError(f"{self.folder / CONFIG} does not name a base", "pass it as --base")
        if name:
            return find_base(name)
        if self.revision not in ("", "main") and _HUB_NAME.fullmatch(self.base) and not Path(self.base).is_dir():
            raise UsageError(
                f"the adapter {self.folder} is for revision {self.revision!r} of its base {self.base}, but bases are "
                "loaded in their default revision",
                f"run `hf download {self.base} --revision {self.revision} --local-dir BASE`, and pass --base BASE",
            )
        try:
            return find_base(self.base)
        except UsageError as error:
            raise UsageError(
                f"the base of the adapter {self.folder} cannot be used: {error.message}", "pass a copy as --base"
            ) from error

    @property
    def has_tokenizer(self) -> bool:
        """True if the folder has a tokenizer, with or without tokens that the base's lacks."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", _ADDED))

    def tokenizer(self, base: Base, codec: str) -> tuple[Tokenizer, Tokenizer | None]:
        """Return the tokenizer, and a second time if it has more tokens than the base's, else None.

        The tokenizer in the adapter's folder is used only if it has more tokens than the base's.

        Raises:
            UsageError: The tokenizer has more tokens than the base has rows.
        """
        base_tokenizer = load_tokenizer(base.folder, codec)
        if (self.folder / "tokenizer.json").is_file():
            saved = Tokenizer(self.folder / "tokenizer.json", codec_named(codec))
        elif self._added_rows() > base_tokenizer.rows:
            saved = load_tokenizer(self.folder, codec)
        else:
            return base_tokenizer, None
        if saved.rows > base.config["vocab_size"]:
            raise BaseMismatchUsageError(
                f"the tokenizer in {self.folder} needs {saved.rows:,} embedding rows, but {base.name} has "
                f"{base.config['vocab_size']:,}",
                "pass the resized base as --base",
            )
        return (saved, saved) if saved.rows > base_tokenizer.rows else (base_tokenizer, None)

    def _added_rows(self) -> int:
        """Return the number of embedding rows for the tokens that were added to a slow tokenizer."""
        added = read_json(self.folder / _ADDED) if (self.folder / _ADDED).is_file() else {}
        return 1 + max((row for row in added.values() if type(row) is int), default=-1)


def adds_tokens(run: Run | PeftAdapter, base: Base) -> bool:
    """Return whether an adapter that peft saved has more tokens than its base. False for runs."""
    return isinstance(run, PeftAdapter) and run.tokenizer(base, "none")[1] is not None


def open_adapter(folder: Run | PeftAdapter | str | os.PathLike[str]) -> Run | PeftAdapter:
    """Open a run or a PEFT folder.

    The folder `adapter` inside a run opens the run. An opened run or adapter is returned unchanged.

    Raises:
        UsageError: The folder is neither, or its adapter is not supported.
    """
    if isinstance(folder, Run | PeftAdapter):
        return folder
    folder = Path(folder)
    if is_run(folder) or (folder / TASK).is_file():
        return Run(folder)
    if folder.name == ADAPTER and is_run(folder.parent):
        return Run(folder.parent)
    adapter = find_adapter(folder)
    if adapter is None:
        raise UsageError(f"{folder} is neither a run nor an adapter", "create one with `lora-ft train`")
    return PeftAdapter(adapter)


def base_of(run: Run | PeftAdapter, named: str | None = None) -> Base:
    """Return the base `named`, or else the base of a run or an adapter, in a local folder."""
    return run.find_base(named) if isinstance(run, PeftAdapter) else find_base(named or run.task.base)


def named_base(run: Run | PeftAdapter) -> str:
    """Return the recorded name of the base of a run or an adapter."""
    return run.base if isinstance(run, PeftAdapter) else run.task.base


def name_of(run: Run | PeftAdapter) -> str:
    """Return the name of a run's task, or of an adapter's folder."""
    return run.name if isinstance(run, PeftAdapter) else run.task.name


def holds_adapter(folder: Path) -> bool:
    """Return whether a folder is a run or a PEFT folder. False for checkpoints, bundles and other folders."""
    if is_run(folder):
        return True
    if (folder / "config.json").is_file():  # some trainers save the base's beside the adapter
        return (folder / CONFIG).is_file() and not has_weights(folder)
    return (folder.name == ADAPTER and is_run(folder.parent)) or find_adapter(folder) is not None
