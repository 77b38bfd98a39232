"""The graph files of a bundle: the inputs of each graph, and the checks when a file is opened.

A graph is opened on first use, which may be hours after the bundle was loaded. By then its folder may have been moved,
or another bundle may have taken its place. Graphs of two bundles, or a graph and the tokenizer of another, would give
fluent nonsense. So a file that changed since is compared with the manifest again (`PublishedFiles`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from lora_ft.core.errors import BundleError, LoraFtError
from lora_ft.core.files import file_status, sha256
from lora_ft.export.runtime.manifest import ADAPTED, WEIGHTS
from lora_ft.export.runtime.session import open_session

MASK = "encoder_attention_mask"


class PublishedFiles:
    """The files of a bundle that was loaded and checked just now.

    Args:
        folder: Folder of the bundle.
        entries: Entry of each file in the manifest. Other files are not compared.

    Attributes:
        folder: Absolute path of the folder, since a program may change its working directory.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.folder, self._entries = folder.absolute(), entries or {}
        self._statuses = {name: file_status(self.folder / name) for name in self._entries}

    def graph(self, name: str) -> Path:
        """Return the path of a graph, after checking that it and its weights are those of the loaded bundle.

        Raises:
            BundleError: The bundle was moved, deleted or replaced.
        """
        path = self.folder / f"{name}.onnx"
        for file in (path, self.folder / WEIGHTS):
            self._require_unchanged(file)
        return path

    def _require_unchanged(self, file: Path) -> None:
        status = file_status(file)
        if file.name not in self._entries or status == self._statuses[file.name]:
            return
        if status is None:
            raise BundleError(f"the bundle {self.folder} was moved or deleted after it was loaded", "load it again")
        if sha256(file) != self._entries[file.name].get("sha256"):
            raise BundleError(
                f"the bundle {self.folder} was replaced after it was loaded ({file.name} differs)", "load it again"
            )
        self._statuses[file.name] = status  # a copy of the same bundle


def prefixed(prefix: str, names: Sequence[str]) -> list[str]:
    """Return the names of keys and values with a prefix, such as `past.0.key`."""
    return [f"{prefix}.{name}" for name in names]


def graph_inputs(names: Sequence[str], adapters: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the names of the inputs of each graph, in the order of its positional calls.

    Args:
        names: Names of the keys and values of all decoder layers.
        adapters: Names of the adapter inputs of each graph of a bank.
    """
    state = [MASK, *prefixed("cross", names), *prefixed("past", names)]
    plain = {
        "encoder": ["input_ids", "attention_mask"],
        **{name: ["input_ids", "lengths", "forbid_eos", *state] for name in ("decoder", "step", "labels", "draft")},
        "log_softmax": ["logits"],
        "top_k": ["scores", "count"],
        "reorder_cache": ["rows", *names],
    }
    return plain | {name: plain[name.removeprefix(ADAPTED)] + list(more) for name, more in adapters.items()}


def open_graph(
    path: Path,
    threads: int,
    provider: str,
    inputs: Sequence[str],
    names: Sequence[str],
    sizes: tuple[int, int, int],
    captured: bool = False,
) -> ort.InferenceSession:
    """Open a graph, and compare its inputs and outputs with config.json.

    Args:
        path: File of the graph.
        threads: Threads per call.
        provider: Execution provider.
        inputs: Names of the inputs that it should have.
        names: Names of the keys and values of all decoder layers.
        sizes: (heads, d_kv, vocabulary) in config.json; for `labels`, the number of their tokens instead of the last.
        captured: See `open_session`.

    Raises:
        LoraFtError: The graph has other inputs, outputs or sizes, or its weights cannot be read.
    """
    try:
        session = open_session(path, threads, provider, captured=captured)
    except Exception as error:
        if "escapes model directory" not in str(error):  # the message of ONNX Runtime 1.26 and later
            raise
        raise LoraFtError(
            f"weights.bin of {path.parent} links to a folder outside the bundle, which ONNX Runtime "
            f"{ort.__version__} refuses",
            "copy the bundle with `cp -rL` and use the copy",
        ) from error
    odd = {entry.name for entry in session.get_inputs()} ^ set(inputs)
    odd |= {entry.name for entry in (*session.get_inputs(), *session.get_outputs()) if not _fits(entry, sizes)}
    if path.stem.endswith("encoder"):
        odd |= {entry.name for entry in session.get_outputs()} ^ set(prefixed("cross", names))
    if odd:
        raise LoraFtError(
            f"{path}: inputs or outputs do not match config.json ({', '.join(sorted(odd)[:4])})",
            "export the bundle again",
        )
    return session


def _fits(entry: Any, sizes: tuple[int, int, int]) -> bool:
    """Return whether an input or output of a graph has the sizes in config.json."""
    heads, d_kv, vocabulary = sizes
    if entry.name.startswith(("past.", "cross.", "present.")):
        return bool(entry.shape[1] == heads and entry.shape[3] == d_kv)
    return entry.name not in ("logits", "log_probs", "scores") or entry.shape[-1] == vocabulary
