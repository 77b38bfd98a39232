"""Banks whose steps the kernel takes: the graphs' answers for mixed adapters, also of those that come and go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_ft.export.bundle import bank as bank_files
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.bundle.bank import add_adapter, remove_adapter
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator, kernel
from lora_ft.export.runtime.scheduler import Limits, Scheduler
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.oracle import redraw
from tests.export.runtime.test_kernel import round_sources
from tests.export.runtime.test_scheduler import Answers, job_of, run
from tests.tiny import save_tiny_t5

SIZES = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4}  # multiples of the groups of 4-bit weights
PRECISIONS = ["int8", "w8", "w4", "int8-w4"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "whole": {"size": 0.4},
    "few": {"rank": 2, "endings": (".q", ".v")},
    "other": {"rank": 3, "endings": (".o", ".wo", ".wi_1")},
}
TEXTS = ["abc", "a longer text, with more words", "so", "the last of them", "one more", "and the base"]
NAMES = ["whole", None, "few", "other", "whole", None]
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"min_new_tokens": 9},
    {"num_beams": 3},
    {"do_sample": True, "seed": 4, "top_k": 7},
    {"prompt_lookup": True},
    {"allowed": ((4, 5, 6), (4, 7), (8,))},
)

Load = Callable[[str], tuple[Generator, Generator]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("kernel bank") / "checkpoint", **SIZES), seed=8, end=3)


@pytest.fixture(scope="module")
def folders(checkpoint: Path) -> Callable[[str], Path]:
    """Return a function that makes the bank of a tiny model in a precision."""
    root = checkpoint.parent
    members = []
    for seed, (name, changes) in enumerate(ADAPTERS.items()):
        adapter = draw_adapter(checkpoint, seed, **changes)
        members.append(member(name, adapter, merged(checkpoint, adapter, root / name)))

    @cache
    def folder(precision: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bank_files, "_NATS", 100)  # random models lose much in 4 bits
            make_bank(checkpoint, members, root / precision, precision=parse(precision))
        return root / precision

    return folder


def loaded(folder: Path) -> Generator:
    """Load a bank whose steps the kernel takes, or skip the test if the processor has no kernel."""
    pytest.importorskip("lora_ft_kernels", reason="lora-ft-kernels is not installed; see `make kernels`")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORA_FT_KERNELS")
        generator = Generator.load(folder, threads=2)
    if generator.model.kernel is None and "lacks" in generator.step_engine:
        pytest.skip(generator.step_engine)
    assert generator.step_engine == "kernel (avx512)"
    return generator


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Load:
    """Return a function that loads a bank twice: with the kernel, and with the graphs alone."""

    @cache
    def both(precision: str) -> tuple[Generator, Generator]:
        kernel, graphs = loaded(folders(precision)), Generator.load(folders(precision), threads=2, kernel=False)
        round_sources(graphs, kernel)
        return kernel, graphs

    return both


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mixed_batches_have_the_answers_of_the_graphs(load: Load, options: dict[str, Any]) -> None:
    ours, theirs = (each.generate(TEXTS, adapter=NAMES, max_new_tokens=30, **options) for each in load("int8"))
    assert ours == theirs
    assert ours != load("int8")[1].generate(TEXTS, max_new_tokens=30, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_near_those_of_the_graphs(load: Load, precision: str) -> None:
    rng = np.random.default_rng(0)
    ids, tokens = rng.integers(2, 60, (6, 11)), rng.integers(2, 60, (6, 9))
    ours, theirs = (each.score(ids, np.ones_like(ids), tokens, adapter=NAMES) for each in load(precision))
    difference = np.abs(ours - theirs)  # large where an input is rounded to the next integer
    assert difference.max() < 0.3 * theirs.std()
    assert np.median(difference, axis=(1, 2)).max() < 0.02 * theirs.std()
    base = load(precision)[1].score(ids, np.ones_like(ids), tokens)
    adapted = [i for i, name in enumerate(NAMES) if name]
    assert np.median(np.abs(base - theirs), axis=(1, 2))[adapted].min() > 0.2 * theirs.std()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_has_equal_bits_beside_any_adapters(load: Load, precision: str) -> None:
    generator, _ = load(precision)
    model, bank = generator.model, generator.bank
    assert bank is not None
    rng = np.random.default_rng(1)
    ids, tokens = rng.integers(2, 60, (6, 16)), rng.integers(2, 60, (6, 7))
    source = model.encode(ids, np.ones_like(ids), bank.select(NAMES))
    together = model.logits(source, model.cache(6), tokens)
    for row, name in enumerate(NAMES):
        alone, cache_ = model.select_source(source, np.array([row])), model.cache(1)
        assert (alone.adapters is None) == (name is None)
        single = [model.logits(alone, cache_, tokens[row : row + 1, i : i + 1])[0, 0] for i in range(7)]
        assert np.array_equal(together[row], np.array(single))


def test_requests_that_share_steps_have_the_answers_of_the_graphs(load: Load) -> None:
    ours, theirs = load("int8")
    expected = theirs.answer(TEXTS * 2, adapter=NAMES * 2, max_new_tokens=30)
    scheduler, answers = Scheduler(ours, Limits(rows=3)), Answers()  # rows leave, and others take their slots
    jobs = [job_of(ours, text, {"max_new_tokens": 30}, name) for text, name in zip(TEXTS * 2, NAMES * 2, strict=True)]
    for job in jobs:
        scheduler.add(job)
    run(scheduler, answers)
    assert [answers.tokens(job) for job in jobs] == [[answer.tokens.tolist()] for answer in expected]


def test_a_replaced_adapter_is_the_new_one(folders: Callable[[str], Path], checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("int8"), tmp_path / "bank")
    generator = loaded(folder)
    before = generator.generate(TEXTS, adapter=NAMES)
    adapter = draw_adapter(checkpoint, 9, rank=2, endings=(".q", ".v"))
    new = member("few", adapter, merged(checkpoint, adapter, tmp_path / "whole"))
    add_adapter(folder, new, *read_model(checkpoint), overwrite=True)
    remove_adapter(folder, ["other"])
    assert generator.generate(TEXTS, adapter=NAMES) == before
    generator.reload()
    names = ["whole" if name == "other" else name for name in NAMES]
    answers, graphs = generator.generate(TEXTS, adapter=names), Generator.load(folder, threads=2, kernel=False)
    round_sources(graphs, generator)
    assert answers == graphs.generate(TEXTS, adapter=names)
    assert answers[2] != before[2] and answers[0] == before[0]


def test_adapters_that_the_kernel_lacks_leave_the_graphs_their_steps(
    load: Load, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load("int8")
    monkeypatch.delenv("LORA_FT_KERNELS")
    monkeypatch.setattr(kernel, "_BY_ADAPTER", "MatMul")
    assert Generator.load(folders("int8")).step_engine == "graphs: adapters of these layers have no kernel"


def test_an_adapter_on_which_the_kernel_disagrees_leaves_the_graphs_their_steps(
    load: Load, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load("int8")
    monkeypatch.delenv("LORA_FT_KERNELS")
    differences = iter([0.0, 0.5])  # of the base, and of the first adapter
    monkeypatch.setattr("lora_ft.export.runtime.kernel_choice.difference", lambda ours, theirs: next(differences))
    generator = Generator.load(folders("int8"))
    assert generator.model.kernel is None and "differ by 0.50" in generator.step_engine
