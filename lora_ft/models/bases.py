"""Bases of adapters (`offline`, a path or a Hub name): download or find one, and load its model and tokenizer."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.core.codecs import Codec, codec_named
from lora_ft.core.errors import LoraFtError, UsageError, first_line
from lora_ft.core.files import read_json
from lora_ft.core.hub import hub_trouble
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.core.user_paths import expanded
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.checkpoint.tensor_checks import check_names, check_numbers, listed
from lora_ft.export.checkpoint.weight_files import conversion, has_weights
from lora_ft.export.families import FAMILIES, MODEL_TYPES
from lora_ft.export.runtime.manifest import is_export
from lora_ft.models.byt5 import byte_tokenizer
from lora_ft.models.offline_base import NOTICE, cached, offline_base

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

OFFLINE = "offline"
_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
]


@dataclass(frozen=True)
class Base:
    """A base model in a local folder.

    Attributes:
        name: Name in the task: Hub name, path, or "offline".
        folder: Folder of its files.
        notice: A warning for its users, or "".
    """

    name: str
    folder: Path
    notice: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return read_json(self.folder / "config.json")


def cache_folder() -> Path:
    """Return lora-ft's cache folder: $LORA_FT_CACHE, or `lora-ft` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LORA_FT_CACHE") or Path(home) / "lora-ft")


def find_base(name: str) -> Base:
    """Return a base in a local folder. A Hub name is downloaded on first use.

    Raises:
        UsageError: The path is not a T5 checkpoint, the Hub name is unknown, or the Hub cannot be reached.
    """
    if name == OFFLINE:
        return Base(name, offline_base(cache_folder()), NOTICE)
    folder = expanded(name)
    base = Base(name, folder if folder.is_dir() else _from_hub(name))
    if is_export(base.folder) and not has_weights(base.folder):
        raise UsageError(
            f"{name} is an export, not a checkpoint", "pass the run or the checkpoint that it was made from"
        )
    if not (base.folder / "config.json").is_file():
        raise UsageError(f"the base {name} has no config.json", "pass a transformers checkpoint of a T5")
    if base.config.get("model_type") not in MODEL_TYPES:
        raise UsageError(
            f"the base {name} has the unsupported model_type '{base.config.get('model_type')}'",
            f"use a base of type {', '.join(MODEL_TYPES)} (FLAN-T5 is t5)",
        )
    if not folder.is_dir() and not has_weights(base.folder):
        raise UsageError(
            f"the base {name} has no safetensors on the Hub, and pickles are never loaded",
            "convert it (huggingface.co/spaces/safetensors/convert), or download pytorch_model.bin and run "
            + conversion(Path("pytorch_model.bin"), Path("model.safetensors")),
        )
    _checked_checkpoint(base.folder)
    return base


def _checked_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint after checking that its tensors' names and shapes match its config.json.

    Raises:
        UsageError: The checkpoint is quantized, or its folder also holds an adapter.
        LoraFtError: As for `check_names`.
    """
    from lora_ft.runs.run import CONFIG  # needs pydantic, and `doctor` runs without it

    checkpoint = Checkpoint(folder)
    if checkpoint.config.get("quantization_config"):
        raise UsageError(f"the weights in {folder} are quantized", "use the checkpoint from before quantization")
    if (folder / CONFIG).is_file():  # transformers would apply it to the weights
        raise UsageError(
            f"{folder} is both a checkpoint and an adapter (it has {CONFIG})",
            "move the adapter's files into a separate folder",
        )
    check_names(checkpoint, Architecture.read(checkpoint.config, folder))
    return checkpoint


def is_offline_cached() -> bool:
    """Return whether the offline base has already been rebuilt."""
    return cached(cache_folder()).is_dir()


def load_tokenizer(folder: Path, codec: str = "none", new_tokens: Sequence[str] = ()) -> Tokenizer:
    """Return the tokenizer of a checkpoint: its tokenizer.json, or one converted from its other files.

    Args:
        folder: transformers checkpoint.
        codec: Name of the task's codec.
        new_tokens: Tokens to add after the existing ones, in unused rows of the embedding.

    Raises:
        UsageError: A new token is invalid, there are too few unused rows, or the model has no row for some token.
        LoraFtError: The checkpoint has no readable tokenizer.
    """
    tokenizer = _stored_tokenizer(folder, codec_named(codec))
    if not (folder / "config.json").is_file():  # an adapter's folder, whose base was checked
        return tokenizer
    rows = read_json(folder / "config.json").get("vocab_size")
    if not isinstance(rows, int):
        raise UsageError(f"{folder / 'config.json'} is missing vocab_size", "copy it again")
    if tokenizer.rows > rows:
        raise UsageError(
            f"the tokenizer in {folder} needs {tokenizer.rows:,} embedding rows, but the model has {rows:,}",
            "resize the model (model.resize_token_embeddings(len(tokenizer))) and save both, or copy the tokenizer "
            "that belongs to it",
        )
    if new_tokens:
        unused = rows - tokenizer.rows
        if len(new_tokens) > unused:
            raise UsageError(
                f"lora.new_tokens has {len(new_tokens)} tokens, but the base has {unused} unused rows",
                "list fewer tokens",
            )
        tokenizer.add(new_tokens)
    return tokenizer


def _stored_tokenizer(folder: Path, codec: Codec) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer(folder / "tokenizer.json", codec)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and read_json(settings).get("tokenizer_class") == "ByT5Tokenizer":
        return byte_tokenizer(codec)
    if not (folder / "spiece.model").is_file():  # transformers 5 would invent a tokenizer
        raise LoraFtError(f"{folder} has neither tokenizer.json nor spiece.model", "copy them from the original base")
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        try:
            AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(f"{scratch}/tokenizer.json")
        except Exception as error:  # the library raises many kinds
            raise LoraFtError(
                f"the tokenizer in {folder} cannot be loaded ({first_line(error)})",
                "copy it again from the original base",
            ) from error
        return Tokenizer(Path(scratch, "tokenizer.json"), codec)


def load_model(
    folder: Path, *, dropout: float | None = None, attention: str | None = None, **options: Any
) -> T5ForConditionalGeneration:
    """Return a checkpoint's model in float32, in evaluation mode.

    Args:
        folder: transformers checkpoint.
        dropout: Dropout rate instead of the checkpoint's own.
        attention: transformers' attn_implementation. Default: transformers' own choice.
        options: Options of transformers' from_pretrained.

    Raises:
        UsageError, LoraFtError: A tensor is missing, unknown, of another shape or not finite, or transformers fails.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM

    check_numbers(_checked_checkpoint(folder))
    _check_generation(folder)
    if dropout is not None:
        options["dropout_rate"] = dropout
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        with quiet_transformers():
            model, info = AutoModelForSeq2SeqLM.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (ImportError, torch.OutOfMemoryError):  # errors of quantization, which already state the remedy
        raise
    except Exception as error:  # the library raises many kinds
        raise LoraFtError(
            f"transformers cannot load {folder} ({first_line(error)})",
            "copy its config.json and generation_config.json again",
        ) from error
    _require_loaded(folder, info)
    model.generation_config.__class__ = _unchecked_settings()
    return model.eval()


@cache
def _unchecked_settings() -> type[Any]:
    """Return a class of generation settings that transformers saves as they are.

    It refuses those without an effect, such as a temperature without do_sample, though published bases have them: at
    the first checkpoint of a training, and transformers 4 after a merge. Calls may set do_sample, so they are kept.
    """
    from transformers import GenerationConfig

    class Unchecked(GenerationConfig):
        def validate(self, *args: Any, **kwargs: Any) -> None: ...

    return Unchecked


def _check_generation(folder: Path) -> None:
    """Raise LoraFtError if generation_config.json is damaged, since transformers would silently ignore it."""
    path = folder / "generation_config.json"
    if path.is_file() and not isinstance(read_json(path), dict):
        raise LoraFtError(f"{path} is not a JSON object", "copy it again from the original base")


def _require_loaded(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise LoraFtError if transformers reports weights that it initialized at random or left out."""
    for key, problem in (
        ("missing_keys", "found no weights for"),
        ("mismatched_keys", "found other shapes for"),
        ("unexpected_keys", "left out"),
        ("error_msgs", "failed with"),
    ):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get(key) or ())
        if names := [name for name in names if not any(name in family.UNUSED for family in FAMILIES)]:
            raise LoraFtError(f"transformers {problem} {listed(names)} in {folder}", "copy the whole checkpoint again")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings in a `with` block (it advises tying FLAN's untied head)."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UsageError(f"there is no base at {name}", "pass an existing folder, a Hub name, or offline")
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
        if has_weights(folder):
            return folder
    except HFValidationError as error:
        raise UsageError(
            f"'{name}' is neither a folder nor a Hub name", "pass an existing folder, a Hub name, or offline"
        ) from error
    except OSError:
        pass  # not downloaded before
    trouble = hub_trouble()
    if trouble:
        raise UsageError(
            f"{name} is not a folder, and the Hub cannot be asked for a base of this name ({trouble})",
            "correct the path of the checkpoint, or use base 'offline'",
        )
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the client raises many kinds
        raise UsageError(
            f"{name} is not a folder, and cannot be downloaded from the Hub ({first_line(error)})",
            "correct the path, or check the name and your access to it",
        ) from error
