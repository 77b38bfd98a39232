"""The models that are measured, in the form that each engine loads: merged and exported once, then kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lora_ft.bench.engines import Engine
from lora_ft.core.errors import UsageError
from lora_ft.core.files import folder_size, read_json, sha256
from lora_ft.core.progress import Progress
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.runtime.manifest import is_bank, is_bundle, read_manifest
from lora_ft.tasks.schema import Task


@dataclass(frozen=True)
class BenchModel:
    """One model.

    Attributes:
        name: as the user called it.
        folder: where what is made of it lies.
        checkpoint: the model merged, or None where a bundle is all there is.
        bundle: a bundle that was made of it before, or None.
        task: where it has one.
    """

    name: str
    folder: Path
    checkpoint: Path | None
    bundle: Path | None = None
    task: Task | None = None

    def made(self, engine: Engine, progress: Progress) -> Path:
        """The folder that an engine loads, exported here where it is of ours; peers convert theirs themselves.

        Raises:
            UsageError: the engine has nothing to load.
            LoraFtError: it cannot be exported.
        """
        if engine.loads == "bundle" and self.bundle is not None:
            precision = str(read_manifest(self.bundle)["precision"])
            if engine.precision != precision:
                raise UsageError(f"{self.bundle} is a bundle in {precision}, nothing for {engine.name}")
            return self.bundle
        if self.checkpoint is None:
            raise UsageError(f"{self.name} is a bundle, nothing for {engine.name}", "give its run or checkpoint")
        if engine.peer:
            return self.folder / engine.name.replace("/", "-")
        if engine.loads == "checkpoint":
            return self.checkpoint
        out = self.folder / f"{engine.loads}-{engine.precision}"
        if not out.is_dir():
            from lora_ft.export_onnx import export_onnx

            export_onnx(
                str(self.checkpoint),
                out,
                precision=engine.precision,
                layout=engine.loads,
                score_rows=1,
                verify_rows=2,
                force=True,
                progress=progress,
            )
        return out

    def tokenizer(self) -> Tokenizer:
        """The model's."""
        from lora_ft.models.bases import load_tokenizer

        if self.checkpoint is None and self.bundle is not None:
            return load_tokenizer(self.bundle, read_json(self.bundle / "prompt.json")["codec"])
        assert self.checkpoint is not None  # it has one of them
        return load_tokenizer(self.checkpoint, self.task.codec if self.task else "none")

    def engines(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some engines that can load it: of a bundle alone the runtime, in the bundle's own precision."""
        if self.checkpoint is not None or self.bundle is None:
            return wanted
        return (f"onnx/{read_manifest(self.bundle)['precision']}",)


def open_bench_model(name: str, work: Path, progress: Progress) -> BenchModel:
    """A run (merged below `work`), a checkpoint, a base or a bundle.

    Raises:
        UsageError, LoraFtError: there is none of this name, it is damaged, or a bank.
    """
    folder = Path(name)
    if is_bank(folder):
        raise UsageError(
            f"{name} is a bank, of which engines would be timed on its base alone",
            "time a run that is in it; `python -m benchmarks.studies.bank` measures what adapters cost",
        )
    if is_bundle(folder):
        return BenchModel(name, work, None, bundle=folder)
    from lora_ft.merge import merge
    from lora_ft.models.bases import find_base
    from lora_ft.runs.run import TASK, Run, is_run
    from lora_ft.tasks.files import load_task

    if is_run(folder):
        run = Run(folder)
        place = work / _key(sorted(run.trained.glob("*.safetensors"))[0], folder.name)
        if not (place / "checkpoint").is_dir():
            merge(run, place / "checkpoint", progress=progress)
        return BenchModel(name, place, place / "checkpoint", task=run.task)
    base = find_base(name)
    task = load_task(base.folder / TASK) if (base.folder / TASK).is_file() else None
    weights = sorted(base.folder.glob("*.safetensors"))
    return BenchModel(name, work / _key(weights[0], base.folder.name), base.folder, task=task)


def size(made: Path, checkpoint: Path | None) -> float:
    """Megabytes of what an engine loads."""
    return folder_size(made if made.is_dir() else checkpoint or made) / 1e6


def _key(weights: Path, name: str) -> str:
    """A folder name for what is made of some weights by this version."""
    digest = hashlib.sha256(f"{sha256(weights)} {version('lora-ft')}".encode()).hexdigest()
    return f"{name}-{digest[:12]}"
