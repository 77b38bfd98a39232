"""Shared fixtures: a tiny random T5 with an untied head, its tokenizer, and a task whose rows fit them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network; those about the hub say so themselves
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LORA_FT_KERNELS"] = "0"  # tests are about the graphs, whatever is installed; those of the kernel say so

# One core for each worker of pytest-xdist: two threads on a tiny model only wait for each other. Not for the process
# that starts the workers, or they would all inherit its one core.
if (_worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

import pytest
import yaml
from hypothesis import HealthCheck, settings

from lora_ft.export.runtime import Generator
from tests.export.oracle import make_bundle, redraw
from tests.tiny import save_tiny_t5

# How long an example takes says more of the machine's other jobs than of the code. CI tries the same examples each
# time, so that it fails on what a change did; every other machine looks for new ones.
settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the README's commands: at the end, all workers would wait five minutes for this test."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """Use a temporary cache, except for the real base, which is expensive to rebuild."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("LORA_FT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGHUP end this process and those it starts, though background jobs and nohup ignore them."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in defaults.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random FLAN-like T5: gated-gelu, untied head, d_kv * heads != d_model."""
    return save_tiny_t5(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets, for tests that use them."""
    folder = Path(os.environ.get("LORA_FT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set LORA_FT_DATA)")
    return folder


@pytest.fixture
def make_task(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Return a function that writes a task file with rows for the tiny base. Keyword arguments replace its sections."""

    def make(rows: int = 24, name: str = "tiny", **sections: Any) -> Path:
        return write_task(tmp_path, tiny_base, rows, name, **sections)

    return make


def write_task(root: Path, tiny_base: Path, /, rows: int = 24, name: str = "tiny", **sections: Any) -> Path:
    """Write a task file and rows below `root`, and return the path of the task file."""
    folder = root / f"task-{name}"
    folder.mkdir(exist_ok=True)
    for split, count in (("train", rows), ("validation", 6), ("test", 6)):
        lines = [json.dumps(tiny_row(i, split)) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content: dict[str, Any] = {
        "name": name,
        "base": str(tiny_base),
        "prompt": "say: {text}",
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")} | {"target": "answer"},
        "lengths": {"source": 48, "target": 24},
        "lora": {"preset": "tiny"},
        "train": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "precision": "fp32",
            "compile": "off",
            "logging_steps": 1,
            "report_to": [],
        },
    }
    for section, values in sections.items():
        defaults = content.get(section)
        content[section] = {**defaults, **values} if isinstance(defaults, dict) and isinstance(values, dict) else values
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def tiny_row(i: int, split: str) -> dict[str, str]:
    """Return a row of the tiny task. Prompts differ between splits and in length."""
    letters = string.ascii_lowercase
    word = "".join(letters[(i * k + len(split)) % 26] for k in range(1, 4 + i % 9))
    return {"text": f"{split[0]} {word}", "answer": word[::-1][: 3 + i % 5]}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("checkpoint") / "tiny"), seed=4, end=1.5)


@pytest.fixture(scope="session")
def published(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `checkpoint`, only to be read."""
    out = tmp_path_factory.mktemp("published") / "bundle"
    make_bundle(checkpoint, out)
    return out


@pytest.fixture
def bundle(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(published, tmp_path / "copy" / "bundle")


@pytest.fixture(scope="session")
def generator(published: Path) -> Generator:
    return Generator.load(published, threads=1)
