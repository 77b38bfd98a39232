"""Small LoRA adapters for FLAN-T5: train, merge, score with ROUGE, generate, export to ONNX.

The names below are the Python API. Each is imported when it is first used, so `import lora_ft` is fast and needs no
torch; `lora_ft.load` runs bundles without it.

A verb and its module share a name: `lora_ft.train` is always the function, also after `import lora_ft.train`. The
module is `sys.modules["lora_ft.train"]`, and `from lora_ft.train import ...` imports from it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lora_ft.core.telemetry import opt_out

opt_out()  # before anything imports a library that would call home

if Path(__file__).with_name("export").is_file():  # Git on Windows writes a link as a text file, unless told otherwise
    raise ImportError(
        "lora_ft/export is not a link to the folder export/; in this checkout, run "
        "`git config core.symlinks true` and `git checkout -- lora_ft/export` (on Windows in Developer Mode)"
    )

if TYPE_CHECKING:
    from lora_ft.compare import compare
    from lora_ft.core.errors import (
        BaseMismatchError,
        BundleError,
        DataError,
        GateError,
        HubError,
        LoraFtError,
        LossError,
        OutputExistsError,
        QueueFullError,
        TaskError,
        UsageError,
    )
    from lora_ft.core.interrupts import Interrupted
    from lora_ft.distill import distill
    from lora_ft.evaluate import evaluate
    from lora_ft.export_onnx import export_onnx
    from lora_ft.generate import generate
    from lora_ft.merge import merge
    from lora_ft.merge_adapters import merge_adapters
    from lora_ft.models.async_model import AsyncModel
    from lora_ft.models.loading import load
    from lora_ft.models.model import Model
    from lora_ft.push import push
    from lora_ft.runs.run import Run
    from lora_ft.search import search
    from lora_ft.shrink import shrink
    from lora_ft.tasks.files import load_task
    from lora_ft.tasks.schema import Task
    from lora_ft.train import train
    from lora_ft.train_many import train_many
    from lora_ft.validate import validate

    __version__: str

__all__ = [
    "AsyncModel",
    "BaseMismatchError",
    "BundleError",
    "DataError",
    "GateError",
    "HubError",
    "Interrupted",
    "LoraFtError",
    "LossError",
    "Model",
    "OutputExistsError",
    "QueueFullError",
    "Run",
    "Task",
    "TaskError",
    "UsageError",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "export_onnx",
    "generate",
    "load",
    "load_task",
    "merge",
    "merge_adapters",
    "push",
    "search",
    "shrink",
    "train",
    "train_many",
    "validate",
]

_MODULES = {
    "AsyncModel": "models.async_model",
    "Interrupted": "core.interrupts",
    "Model": "models.model",
    "Run": "runs.run",
    "Task": "tasks.schema",
    "load": "models.loading",
    "load_task": "tasks.files",
} | {name: "core.errors" for name in __all__ if name.endswith("Error")}
"""Modules of names that do not stand in a module of their own name."""
_VERBS = frozenset(__all__) - frozenset(_MODULES) - {"__version__"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = getattr(import_module(f"lora_ft.{_MODULES.get(name, name)}"), name)
    else:
        raise AttributeError(f"module 'lora_ft' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lora-ft")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


class _Package(ModuleType):
    """The package, whose verbs stay functions.

    After importing `lora_ft.train`, Python sets that module as the attribute `train` of the package, whatever stood
    there. Only an assignment of a verb's module is ignored, so a test may still replace the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a name. dill and cloudpickle do that for plain modules only, and would copy this one's content."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
