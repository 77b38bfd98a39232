"""Weight files of a checkpoint: `model.safetensors`, or the shards that its index names, and no other files.

A folder may contain other `*.safetensors`: averages, other precisions, adapters, leftovers. Only the two names that
transformers loads are considered, so that training, export and all other tools read the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json
from lora_ft.export.runtime.safetensors_file import describe_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_LFS = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint, sorted by name.

    Raises:
        UsageError: The folder has no safetensors weights, or two sets of them.
        LoraFtError: The index and the shards disagree, or a file is only a pointer to its content.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_file():
        if not _is_there(single):
            raise _no_weights(folder)
        return [single]
    shards = _shards(index)
    if _is_there(single) and SINGLE not in shards:
        # `save_pretrained` leaves the index of an earlier, larger save behind; transformers loads the single file.
        if all((folder / shard).is_file() for shard in shards):
            raise UsageError(
                f"{folder} has two sets of weights: {SINGLE}, and the shards of {INDEX}", "delete the old set"
            )
        return [single]
    _check_shards(folder, shards)
    return [folder / shard for shard in sorted(shards)]


def has_weights(folder: Path) -> bool:
    """Return True if a folder has safetensors weights that transformers would load, even if incomplete."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def conversion(pickled: Path, safe: Path, *, metadata: bool = True) -> str:
    """Return a command that rewrites a pickled state dict as safetensors without running any code in it."""
    extra = ", {'format': 'pt'}" if metadata else ""
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{pickled}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{safe}'{extra})\""
    )


def check_content(path: Path) -> None:
    """Raise LoraFtError if a file is a dangling link or a Git LFS pointer."""
    if path.is_symlink() and not path.exists():
        raise LoraFtError(f"{path} is a link to a missing file ({path.readlink()})", "download it again")
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise LoraFtError(f"{path} is a Git LFS pointer, not the weights", "run `git lfs pull` in its repository")


def _is_there(path: Path) -> bool:
    if path.is_symlink() or path.is_file():
        check_content(path)
        return True
    return False


def _no_weights(folder: Path) -> UsageError:
    pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
    if pickled is not None:
        if (folder / "pytorch_model.bin.index.json").is_file():
            remedy = f"convert each shard, e.g. {conversion(pickled, folder / f'{pickled.stem}.safetensors')}"
        else:
            remedy = f"convert it without running its code: {conversion(pickled, folder / SINGLE)}"
        return UsageError(f"{folder} has no {SINGLE}, only {pickled.name}, and lora-ft never loads pickles", remedy)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        return UsageError(f"{folder} has no {SINGLE}", "save the model as safetensors")
    state = f"only {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
    if any(_SHARD.fullmatch(name) for name in names):
        return UsageError(f"{folder} has no {INDEX}, {state}", "copy the index that belongs to the shards")
    return UsageError(f"{folder} has no {SINGLE}, {state}", f"rename the weights to load to {SINGLE}")


def _shards(index: Path) -> Mapping[str, set[str]]:
    """Return the tensor names of each shard, according to an index."""
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not weights or not all(isinstance(file, str) for file in weights.values()):
        raise LoraFtError(f"{index} has no weight_map of names to files", "copy it again")
    shards: dict[str, set[str]] = {}
    for name, file in weights.items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise LoraFtError(f"{index} names {file!r}, which is not a safetensors file in its folder", "copy it again")
        shards.setdefault(file, set()).add(name)
    return shards


def _check_shards(folder: Path, shards: Mapping[str, set[str]]) -> None:
    """Raise LoraFtError unless all shards exist and contain exactly the tensors that the index assigns to them."""
    missing = sorted(shard for shard in shards if not _is_there(folder / shard))
    if missing:
        raise LoraFtError(f"{folder} lacks {missing[0]}, which {INDEX} names", "copy or download the shard")
    stray = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name) and path.name not in shards)
    if stray:
        raise LoraFtError(f"{folder} has the shard {stray[0]}, which {INDEX} does not name", "delete it, or the index")
    places: dict[str, str] = {}
    for shard, named in sorted(shards.items()):
        stored = set(describe_tensors(folder / shard))
        for name in sorted(stored):
            if name in places:
                raise LoraFtError(
                    f"{folder}: {places[name]} and {shard} both contain {name}", "copy the checkpoint again"
                )
            places[name] = shard
        if stored != named:
            name = min(stored ^ named)
            says = (
                f"lacks {name}, which {INDEX} assigns to it"
                if name in named
                else f"contains {name}, which {INDEX} does not assign to it"
            )
            raise LoraFtError(f"{folder / shard} {says}", "copy the checkpoint again")
