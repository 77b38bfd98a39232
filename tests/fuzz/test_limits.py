"""Tests of the fuzzers: each fault that is planted into a call must be detected."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from tests.fuzz import limits, test_models, test_rows, test_tasks
from tests.fuzz.limits import survives


class Planted(Exception):
    """An exception that no code expects."""


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError(), UnicodeDecodeError("utf-8", b"", 0, 1, "bad")])
def test_an_exception_of_others_is_noticed(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        survives(fail)


def test_our_error_is_returned() -> None:
    error = UsageError("it is damaged", "mend it")

    def fail() -> None:
        raise error

    assert survives(fail) is error


@pytest.mark.parametrize(("message", "remedy"), [("", ""), (" \n", "mend it"), ("it is damaged", "please report it")])
def test_error_without_a_remedy_is_detected(message: str, remedy: str) -> None:
    def fail() -> None:
        raise LoraFtError(message, remedy)

    with pytest.raises(AssertionError, match=r"message|defect of lora-ft"):
        survives(fail)


def test_a_call_that_does_not_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> None:
        while True:
            pass

    monkeypatch.setattr(limits, "SECONDS", 0.2)
    with pytest.raises(AssertionError, match="processor"):
        survives(hang)


def test_endless_call_of_a_library_ends_the_process() -> None:
    code = """
import os
from tests.fuzz import limits

def wait_for_ever():
    os.read(os.pipe()[0], 1)

limits.HANG = 0.2
limits.survives(wait_for_ever)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == -signal.SIGALRM
    assert "in wait_for_ever" in process.stderr


def test_a_call_that_takes_much_memory_is_noticed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEGABYTES", 100)
    for _ in range(2 if Path("/proc/self/clear_refs").exists() else 1):
        with pytest.raises(AssertionError, match="MB"):
            survives(lambda: bytearray(os.urandom(1_000) * 200_000)[:1])


@pytest.mark.parametrize(
    ("place", "fuzzer"),
    [
        ("lora_ft.tasks.files._checked", test_tasks.test_overrides),
        ("lora_ft.tasks.files.combinations", test_tasks.test_damaged_values_of_a_whole_task),
        ("lora_ft.data.readers._read", test_rows.test_a_damaged_file_is_read_or_refused),
        ("lora_ft.data.examples.ExampleMaker._cells", test_rows.test_any_cell_becomes_text_or_is_refused),
        ("lora_ft.models.adapters.require_tensors", test_models.test_an_adapter_folder),
        ("lora_ft.models.bases._stored_tokenizer", test_models.test_a_checkpoint_folder),
        ("lora_ft.export.runtime.generator.read_manifest", test_models.test_a_manifest),
        ("lora_ft.export.runtime.generator.Settings.of", test_models.test_settings_of_a_bundle_whose_manifest_agrees),
        ("lora_ft.export.runtime.generator.Generator._options", test_models.test_options_of_generation),
    ],
)
def test_a_fault_deep_in_the_code_fails_the_fuzzer(
    place: str, fuzzer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise Planted

    fixed = {"name": "x.csv", "grid": {"lora.r": [4, 8]}, "method": "stream", "base_loaded_once": None}
    names = inspect.signature(fuzzer).parameters
    arguments = {name: fixed[name] if name in fixed else request.getfixturevalue(name) for name in names}
    monkeypatch.setattr(place, fail)
    with pytest.raises(Planted):
        fuzzer(**arguments)


folder = test_tasks.folder
