"""In the precisions that promise it, a row has equal bits alone and in company, one token per call or several."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.export.precision import NAMED, parse
from lora_ft.export.runtime import Generator
from tests.export.oracle import make_bundle, redraw
from tests.export.runtime.independence import Case, differing
from tests.tiny import save_tiny_t5

ROOT = Path(__file__).parents[3]
INDEPENDENT = [
    *(name for name, precision in NAMED.items() if "cpu" in precision.independent),
    "encoder=int8,decoder=fp32,head=int8,embedding=fp32",
]
# sizes that are no multiples of the widest registers
SIZES = {"d_model": 72, "d_kv": 16, "d_ff": 136, "num_heads": 3}
_EMULATOR = shutil.which("qemu-x86_64") or ""

Load = Callable[[str], Generator]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a function that loads the bundle of a tiny model in a precision."""
    folder = tmp_path_factory.mktemp("independence")
    checkpoint = redraw(save_tiny_t5(folder / "checkpoint", **SIZES), seed=8, end=3)

    @cache
    def loaded(precision: str) -> Generator:
        make_bundle(checkpoint, folder / precision, precisions=[parse(precision)])
        return Generator.load(folder / precision, threads=2)

    return loaded


cases = st.builds(
    Case,
    sources=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    padding=st.integers(0, 50),
    calls=st.lists(st.integers(1, 6), max_size=8),
    seed=st.integers(0, 99),
)


@pytest.mark.parametrize("precision", INDEPENDENT)
def test_a_row_has_equal_bits_in_any_company(load: Load, precision: str) -> None:
    generator = load(precision)

    @settings(max_examples=25)
    @given(case=cases)
    def holds(case: Case) -> None:
        assert differing(generator.model, generator.tokenizer.size, case) == []

    holds()


@pytest.mark.parametrize("processor", ["Haswell", "Nehalem"])  # without AVX-512, and without AVX
@pytest.mark.skipif(not _EMULATOR, reason="qemu-x86_64 is not installed (package qemu-user)")
def test_a_row_has_equal_bits_on_older_processors(load: Load, processor: str) -> None:
    folders = [str(load(precision).folder) for precision in ("fp32", "int8")]
    program = [sys.executable, "-m", "tests.export.runtime.independence", *folders]
    finished = subprocess.run(
        [_EMULATOR, "-cpu", processor, *program], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert finished.stdout.split() == ["equal"] * 2, finished.stdout + finished.stderr[-2000:]


@pytest.mark.parametrize("precision", ["fp32", "int8", "w8"])
def test_prompt_lookup_is_on_where_rows_are_independent(load: Load, precision: str) -> None:
    assert load(precision).defaults["prompt_lookup"] is (precision in INDEPENDENT)
