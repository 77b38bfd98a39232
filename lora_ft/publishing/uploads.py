"""The files of a folder to upload to the Hub, and their names in the repository.

Only files listed here are uploaded. Resume points, optimizer states, curves and report.html never are. Predictions
contain rows, so they are uploaded only on request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.core.errors import UsageError
from lora_ft.core.files import read_json
from lora_ft.export.runtime import manifest
from lora_ft.models.adapter_files import adapter_config
from lora_ft.models.checkpoints import MERGE, TOKENIZER_FILES
from lora_ft.publishing.model_card import card_for_repo
from lora_ft.publishing.redaction import base_name, is_hub_name, public_record, public_task
from lora_ft.runs.run import CARD, CHECKPOINT, CONFIG, LOG, METRICS, PREDICTIONS, SCORES, TASK, Run, is_run
from lora_ft.tasks.files import load_task, task_text
from lora_ft.tasks.schema import SPLITS, Task


@dataclass(frozen=True)
class Uploads:
    """Files to upload.

    Attributes:
        kind: "run", "checkpoint", "bundle", or the name of a layout.
        name: Name of the task or model, for messages.
        files: Local file or content, by name in the repository.
    """

    kind: str
    name: str
    files: dict[str, Path | bytes]

    @property
    def size(self) -> int:
        """Return the total size in bytes."""
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())


def uploads(folder: Path, repo: str, *, predictions: bool = False) -> Uploads:
    """Return the files of a run, a merged checkpoint or an exported model to upload to the repository `repo`.

    Raises:
        UsageError: The folder is none of these.
        LoraFtError: The folder is damaged.
    """
    if manifest.is_bundle(folder):
        selection = _bundle(folder)
    elif (folder / manifest.LAYOUT_RECORD).is_file():
        selection = _layout(folder)
    elif is_run(folder):
        selection = _run(folder, predictions)
    elif (folder / MERGE).is_file():
        selection = _checkpoint(folder)
    else:
        raise UsageError(
            f"{folder} is neither a run, a merged checkpoint nor a bundle", "pass a folder that lora-ft wrote"
        )
    if (folder / CARD).is_file():
        selection.files[CARD] = card_for_repo((folder / CARD).read_text(encoding="utf-8"), repo).encode()
    return selection


def _run(folder: Path, predictions: bool) -> Uploads:
    """Return a run's files, with the adapter at the top for PEFT. `lora_ft.runs.run.Run` reads both layouts."""
    run = Run(folder)
    if run.task.method == "full":
        files = {f"{CHECKPOINT}/{name}": file for name, file in _weights(run.trained).items()}
    else:
        config = adapter_config(run.adapter)
        if not is_hub_name(str(config.get("base_model_name_or_path"))):
            config["base_model_name_or_path"] = None  # PEFT would load that folder, or an unrelated model of its name
        files = {path.name: path for path in sorted(run.adapter.glob("*.safetensors"))}
        files[CONFIG] = _json(config)
    files[TASK] = _task(run.task)
    files[METRICS] = _json(public_record(run.metrics))
    if (folder / LOG).is_file():
        files[LOG] = folder / LOG
    for split in SPLITS:
        if (folder / SCORES.format(split)).is_file():
            files[SCORES.format(split)] = _json(public_record(read_json(folder / SCORES.format(split))))
        if predictions and (folder / PREDICTIONS.format(split)).is_file():
            files[PREDICTIONS.format(split)] = folder / PREDICTIONS.format(split)
    return Uploads("run", run.task.name, files)


def _checkpoint(folder: Path) -> Uploads:
    record = read_json(folder / MERGE)
    files = _weights(folder)
    files[MERGE] = _json(public_record(record))
    if (folder / TASK).is_file():  # an adapter that peft saved has none
        files[TASK] = _task(load_task(folder / TASK))
    return Uploads("checkpoint", record["adapter"], files)


def _weights(folder: Path) -> dict[str, Path | bytes]:
    """Return the weights, configs and tokenizer of a transformers folder."""
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(folder.glob("model*.safetensors"))}
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER_FILES):
        if (folder / name).is_file():
            files[name] = folder / name
    if "tokenizer_config.json" in files:  # a copy of the base's, which may contain the base's path
        files["tokenizer_config.json"] = _json(public_record(read_json(folder / "tokenizer_config.json")))
    return files


def _bundle(folder: Path) -> Uploads:
    content = manifest.read_manifest(folder)  # also checks every file against the manifest
    files: dict[str, Path | bytes] = {
        name: folder / name for name in (*content["files"], *manifest.adapter_files(content))
    }
    changed: dict[str, Any] = {"base": base_name(content["base"])}
    if manifest.ADAPTERS in content:
        changed[manifest.ADAPTERS] = {name: _entry(entry) for name, entry in content[manifest.ADAPTERS].items()}
    files[manifest.NAME] = _json(content | changed)
    return Uploads("bundle", content["adapter"] or base_name(content["base"]), files)


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a bank's manifest entry of an adapter, without local paths."""
    task = public_task(Task.model_validate(entry["task"])) if entry.get("task") else None
    content = task.model_dump(mode="json", exclude_none=True) if task else {}
    return entry | {"base": base_name(entry["base"]), "task": content}


def _layout(folder: Path) -> Uploads:
    content = read_json(folder / manifest.LAYOUT_RECORD)
    files: dict[str, Path | bytes] = {name: folder / name for name in content["files"]}
    files[manifest.LAYOUT_RECORD] = _json(content | {"base": base_name(content["base"])})
    return Uploads(content["layout"], content["adapter"] or base_name(content["base"]), files)


def _task(task: Task) -> bytes:
    return task_text(public_task(task)).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
