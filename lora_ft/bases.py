"""The base of an adapter: `offline`, a path or a hub name, brought to a local folder, and its model and tokenizer."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.architecture import FAMILY
from export.errors import LoraFtError, UsageError, first_line
from export.files import read_json
from export.runtime.codec import Codec, codec_named
from export.runtime.text import Tokenizer
from lora_ft.byt5 import byte_tokenizer
from lora_ft.hub import hub_trouble
from lora_ft.offline import NOTICE, cached, offline_base

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

OFFLINE = "offline"
_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json",
          "special_tokens_map.json", "spiece.model"]  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base model at hand.

    Attributes:
        name: as the task says it: hub name, path, or "offline".
        folder: where its files lie.
        notice: what a user of it must know, or "".
    """

    name: str
    folder: Path
    notice: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_json(self.folder / "config.json")


def cache_folder() -> Path:
    """Where lora-ft keeps what it makes once: $LORA_FT_CACHE, else lora-ft below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LORA_FT_CACHE") or Path(home) / "lora-ft")


def find_base(name: str) -> Base:
    """Bring a base to a local folder.

    Raises:
        UsageError: a path that is no T5 checkpoint, an unknown hub name, or a hub that cannot be reached.
    """
    if name == OFFLINE:
        return Base(name, offline_base(cache_folder()), NOTICE)
    folder = Path(name).expanduser()
    base = Base(name, folder if folder.is_dir() else _from_hub(name))
    if not (base.folder / "config.json").is_file():
        raise UsageError(f"the base {name} has no config.json", "give a transformers checkpoint of a T5")
    if base.config.get("model_type") not in FAMILY:
        raise UsageError(
            f"the base {name} is a '{base.config.get('model_type')}'", f"supported: {', '.join(FAMILY)} (FLAN-T5 is t5)"
        )
    if not any(base.folder.glob("*.safetensors")):
        raise UsageError(f"the base {name} has no *.safetensors", "weights in other formats are never loaded")
    return base


def is_offline_cached() -> bool:
    """Whether the offline base was rebuilt already."""
    return cached(cache_folder()).is_dir()


def load_tokenizer(folder: Path, codec: str = "none", new_tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a checkpoint: its tokenizer.json, or one converted from what else it has.

    Args:
        folder: transformers checkpoint.
        codec: name of the task's codec.
        new_tokens: added behind the tokens that there are, in rows of the embedding that no token has.

    Raises:
        UsageError: a new token is none, or there are more than spare rows.
        LoraFtError: there is no tokenizer that can be read.
    """
    tokenizer = _own_tokenizer(folder, codec_named(codec))
    if new_tokens:
        spare = read_json(folder / "config.json")["vocab_size"] - tokenizer.size
        if len(new_tokens) > spare:
            raise UsageError(
                f"lora.new_tokens: {len(new_tokens)} tokens, and the base has {max(spare, 0)} rows to spare",
                "name fewer",
            )
        tokenizer.add(new_tokens)
    return tokenizer


def _own_tokenizer(folder: Path, through: Codec) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer(folder / "tokenizer.json", through)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and read_json(settings).get("tokenizer_class") == "ByT5Tokenizer":
        return byte_tokenizer(through)
    if not (folder / "spiece.model").is_file():  # transformers 5 would make a tokenizer up
        raise LoraFtError(f"{folder} has neither tokenizer.json nor spiece.model", "copy them from the original base")
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        try:
            AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(f"{scratch}/tokenizer.json")
        except Exception as error:  # the library raises many kinds
            raise LoraFtError(f"{folder} has no tokenizer that can be loaded ({error})") from error
        return Tokenizer(Path(scratch, "tokenizer.json"), through)


def load_model(
    folder: Path, *, dropout: float | None = None, attention: str | None = None, **more: Any
) -> T5ForConditionalGeneration:
    """A checkpoint's model in float32, in evaluation mode.

    Args:
        folder: transformers checkpoint.
        dropout: replaces the checkpoint's own rate.
        attention: transformers' attn_implementation; its default where None.
        more: options of transformers' from_pretrained.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSeq2SeqLM

    options = more if dropout is None else {**more, "dropout_rate": dropout}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        with quiet_transformers():
            model = AutoModelForSeq2SeqLM.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, local_files_only=True, **options
            )
    except SafetensorError as error:
        raise LoraFtError(f"the weights in {folder} are damaged ({first_line(error)})", "copy them again") from error
    return model.eval()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it transformers draws no loading bar and gives no advice (it advises to tie FLAN's untied head)."""
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
        raise UsageError(f"no base at {name}", "give an existing folder, a hub name, or offline")
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
        if any(folder.glob("*.safetensors")):
            return folder
    except HFValidationError as error:
        raise UsageError(f"'{name}' is neither a folder nor a hub name", "or use the base offline") from error
    except OSError:
        pass  # not downloaded before
    trouble = hub_trouble()
    if trouble:
        raise UsageError(
            f"the base {name} is on the hub, and {trouble}",
            "use base 'offline', or the path of a checkpoint on this machine",
        )
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the client raises many kinds
        raise UsageError(f"the base {name} cannot be downloaded ({first_line(error)})") from error
