"""The measured models in the format of each engine. A model is merged and exported once, then cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    """A measured model.

    Attributes:
        name: Name as the user typed it.
        folder: Cache for the model's exports.
        checkpoint: The merged model, or None if only a bundle exists.
        bundle: An existing bundle of the model, or None.
        task: The model's task, or None.
    """

    name: str
    folder: Path
    checkpoint: Path | None
    bundle: Path | None = None
    task: Task | None = None

    def prepare(self, engine: Engine, progress: Progress) -> Path:
        """Return the folder that an engine loads. Bundles are exported; peers convert checkpoints themselves.

        Raises:
            LoraFtError: The export failed.
        """
        if self._is_own(engine):
            assert self.bundle is not None
            return self.bundle
        assert self.checkpoint is not None
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
        """Return the model's tokenizer."""
        from lora_ft.models.bases import load_tokenizer

        if self.checkpoint is None and self.bundle is not None:
            return load_tokenizer(self.bundle, read_json(self.bundle / "prompt.json")["codec"])
        assert self.checkpoint is not None
        return load_tokenizer(self.checkpoint, self.task.codec if self.task else "none")

    @property
    def bundle_engine(self) -> str:
        """Return the name of the engine that loads the existing bundle: the ONNX engine in its precision."""
        assert self.bundle is not None
        return f"onnx/{read_manifest(self.bundle)['precision']}"

    def loadable(self, engines: Sequence[Engine]) -> list[Engine]:
        """Return the engines that can load the model. A bundle without a checkpoint is loaded by its own alone."""
        return [engine for engine in engines if self.checkpoint is not None or self._is_own(engine)]

    def _is_own(self, engine: Engine) -> bool:
        """Return whether an engine loads the existing bundle."""
        loads_bundle = self.bundle is not None and engine.loads == "bundle"
        return loads_bundle and f"onnx/{engine.precision}" == self.bundle_engine


def bundle_engines(models: Sequence[str]) -> list[str]:
    """Return the engines that load those of the models that are bundles, each engine once."""
    bundles = [BenchModel(name, Path(name), None, bundle=Path(name)) for name in models if is_bundle(Path(name))]
    return list(dict.fromkeys(model.bundle_engine for model in bundles))


def open_bench_model(name: str, work: Path, progress: Progress) -> BenchModel:
    """Open a run (merged below `work`), a checkpoint, a base or a bundle.

    Raises:
        UsageError: The model does not exist, or is a bank.
        LoraFtError: The model is damaged.
    """
    folder = Path(name)
    if is_bank(folder):
        raise UsageError(
            f"{name} is a bank, which cannot be timed",
            "time one of its runs",
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


def megabytes(prepared: Path, checkpoint: Path | None) -> float:
    """Return the size of the files that an engine loads."""
    return folder_size(prepared if prepared.is_dir() else checkpoint or prepared) / 1e6


def _key(weights: Path, name: str) -> str:
    """Return the folder name of the exports of `weights`, which changes with the version of lora-ft."""
    digest = hashlib.sha256(f"{sha256(weights)} {version('lora-ft')}".encode()).hexdigest()
    return f"{name}-{digest[:12]}"
