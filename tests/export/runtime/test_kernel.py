"""Bundles that the kernel computes: the graphs' answers, and rows that are independent in every precision."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings

from lora_ft.export.families import t5
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.counters import Counters
from lora_ft.export.runtime.job import Job
from lora_ft.export.runtime.kernel_choice import NEAR, difference
from lora_ft.export.runtime.source_encoder import SourceEncoder
from tests.export.oracle import make_bundle, redraw
from tests.export.runtime.independence import Case, differing
from tests.export.runtime.test_independence import cases
from tests.tiny import save_tiny_t5

SIZES = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4}  # multiples of the groups of 4-bit weights
PRECISIONS = ["int8", "w8", "w4", "int8-w4"]
TEXTS = ["abc", "a longer text, with more words", "so", "the last of them"]
OPTIONS = ({}, {"min_new_tokens": 9}, {"num_beams": 3}, {"do_sample": True, "seed": 4, "top_k": 7})

Load = Callable[[str], tuple[Generator, Generator]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the bundle of a tiny model in a precision."""
    root = tmp_path_factory.mktemp("kernel")
    checkpoint = redraw(save_tiny_t5(root / "checkpoint", **SIZES), seed=8, end=3)

    @cache
    def folder(precision: str) -> Path:
        make_bundle(checkpoint, root / precision, precisions=[parse(precision)])
        return root / precision

    return folder


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Load:
    """Return a function that loads a bundle twice: with the kernel, and with the graphs alone."""
    pytest.importorskip("lora_ft_kernels", reason="lora-ft-kernels is not installed; see `make kernels`")

    @cache
    def loaded(precision: str) -> tuple[Generator, Generator]:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("LORA_FT_KERNELS")
            kernel = Generator.load(folders(precision), threads=2)
        if kernel.model.kernel is None and "lacks" in kernel.step_engine:
            pytest.skip(kernel.step_engine)
        assert kernel.step_engine == kernel.encoder_engine == "kernel (avx512)"
        graphs = Generator.load(folders(precision), threads=2, kernel=False)
        round_sources(graphs, kernel)
        return kernel, graphs

    return loaded


def round_sources(graphs: Generator, kernel: Generator) -> None:
    """Let graphs attend to sources as the kernel has them, for answers that are equal and not only similar."""
    encode, taker = graphs.model.encode, kernel.model.kernel
    assert taker is not None
    vars(graphs.model)["encode"] = lambda *arguments: taker.adopt(encode(*arguments)).expanded()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_are_those_of_the_graphs(load: Load, options: dict[str, object]) -> None:
    kernel, graphs = load("int8")
    assert kernel.generate(TEXTS, max_new_tokens=30, **options) == graphs.generate(TEXTS, max_new_tokens=30, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_near_those_of_the_graphs(load: Load, precision: str) -> None:
    rng = np.random.default_rng(0)
    ids, tokens = rng.integers(2, 60, (3, 11)), rng.integers(2, 60, (3, 9))
    ours, theirs = (each.score(ids, np.ones_like(ids), tokens) for each in load(precision))
    # floats that are rounded to the next integer, in the encoder too, move few logits; a mistake moves all
    assert np.abs(ours - theirs).max() < 0.3 * theirs.std()
    assert np.median(np.abs(ours - theirs)) < 0.03 * theirs.std()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sources_are_near_those_of_the_graph(load: Load, precision: str) -> None:
    ids, mask = np.random.default_rng(1).integers(2, 60, (3, 45)), np.ones((3, 45), np.int64)
    mask[1, 20:] = 0
    ours, theirs = (each.model.encode(ids, mask).expanded() for each in load(precision))
    assert np.array_equal(ours.values[0].numpy(), theirs.values[0].numpy())
    for kernel, graph in zip(ours.values[1:], theirs.values[1:], strict=True):
        difference = (kernel.numpy() - graph.numpy()).swapaxes(1, 2)[ours.values[0].numpy() == 1]
        assert np.abs(difference).max() < 0.3 * graph.numpy().std()
        assert np.median(np.abs(difference)) < 0.03 * graph.numpy().std()


def test_a_source_is_encoded_beside_others_with_fewer_threads(load: Load) -> None:
    model, ids = load("int8")[0].model, np.random.default_rng(2).integers(2, 60, (5, 70))
    mask = np.ones_like(ids)
    together = model.encode(ids, mask)
    with ThreadPoolExecutor(2) as executor:
        rows = list(executor.map(lambda i: model.encode(ids[i : i + 1], mask[:1], threads=1), range(5)))
    for i, row in enumerate(rows):
        for values, alone in zip(together.values, row.values, strict=True):
            assert np.array_equal(values.numpy()[i], alone.numpy()[0])


def test_a_source_that_waits_keeps_its_memory(load: Load) -> None:
    generator, _ = load("int8")
    encoder = SourceEncoder(generator.model, Counters())
    jobs = [Job.of(generator, generator.prepare(f"{i}" * 20, {})) for i in range(9)]
    waiting = [encoder.encode(job) for job in jobs]
    for job, encoded in zip(jobs, waiting, strict=True):
        source = generator.model.encode(job.prompted.ids[None], np.ones((1, len(job.prompted.ids)), np.int64))
        for value, array in zip(source.values[1:], encoded.cross, strict=True):
            assert np.array_equal(value.numpy(), array)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=20)
@given(case=cases)
def test_a_row_has_equal_bits_in_any_company(load: Load, precision: str, case: Case) -> None:
    generator, _ = load(precision)
    assert differing(generator.model, generator.tokenizer.size, case) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lookup_is_lossless(load: Load, precision: str) -> None:
    generator, _ = load(precision)
    texts = [text * 3 for text in TEXTS]
    plain, drafted = (generator.generate(texts, max_new_tokens=30, prompt_lookup=lookup) for lookup in (False, True))
    assert drafted == plain


def test_the_answer_grows_beyond_the_first_room(load: Load) -> None:
    kernel, graphs = load("int8")
    options = {"max_new_tokens": 150, "min_new_tokens": 140}
    assert kernel.generate(TEXTS[:2], **options) == graphs.generate(TEXTS[:2], **options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.skipif(sys.platform == "darwin", reason="forked children of a process with threads may not go on there")
def test_a_forked_child_has_the_kernel(load: Load) -> None:
    generator, _ = load("int8")
    expected = generator.generate(TEXTS, max_new_tokens=12)
    child = os.fork()
    if child == 0:
        os._exit(int(generator.generate(TEXTS, max_new_tokens=12) != expected))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert generator.generate(TEXTS, max_new_tokens=12) == expected


def test_a_copy_in_another_process_takes_its_steps_the_same_way(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    generators = load("int8")
    monkeypatch.delenv("LORA_FT_KERNELS")
    assert [pickle.loads(pickle.dumps(each)).step_engine for each in generators] == ["kernel (avx512)", "graphs"]


def test_a_bundle_of_another_structure_keeps_its_graphs(
    folders: Callable[[str], Path], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("int8")
    monkeypatch.delenv("LORA_FT_KERNELS")
    monkeypatch.setattr(t5, "norms", lambda architecture, stack: [f"{stack}.weight"])
    generator = Generator.load(folders("int8"))
    assert generator.step_engine == "graphs: the graph has no constant decoder.weight"
    assert generator.encoder_engine == "graph: the graph has no constant encoder.weight"


def test_the_variable_switches_the_kernel_off(folders: Callable[[str], Path]) -> None:
    generator = Generator.load(folders("int8"))
    assert generator.step_engine == "graphs: LORA_FT_KERNELS is 0"
    assert generator.encoder_engine == "graph: LORA_FT_KERNELS is 0"


def test_the_encoder_is_chosen_apart_from_the_steps(
    folders: Callable[[str], Path], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("int8")
    monkeypatch.delenv("LORA_FT_KERNELS")
    mixture = Generator.load(folders("encoder=fp32,decoder=w8,head=w8,embedding=int8"))
    assert mixture.step_engine == "kernel (avx512)" and mixture.model.encoder is None
    assert mixture.encoder_engine.startswith("graph: the precision encoder=fp32")
    assert pickle.loads(pickle.dumps(mixture)).step_engine == "kernel (avx512)"
    mixture = Generator.load(folders("encoder=int8,embedding=int8"))
    assert mixture.encoder_engine == "kernel (avx512)" and mixture.model.kernel is None
    assert pickle.loads(pickle.dumps(mixture)).encoder_engine == "kernel (avx512)"


def test_the_graphs_take_what_the_kernel_cannot(
    folders: Callable[[str], Path], published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORA_FT_KERNELS")
    assert Generator.load(folders("fp32")).step_engine == "graphs: the precision fp32 has no kernel"
    monkeypatch.setitem(sys.modules, "lora_ft_kernels", None)
    assert Generator.load(folders("int8")).step_engine.startswith("graphs: lora-ft-kernels is not installed")
    monkeypatch.setitem(sys.modules, "lora_ft_kernels", ModuleType("lora_ft_kernels"))  # as before it had a number
    assert Generator.load(folders("int8")).step_engine == (
        "graphs: lora-ft-kernels has interface 1, not 3; install it again (make kernels)"
    )


def test_a_difference_is_relative_to_the_spread_of_the_logits() -> None:
    theirs = np.array([[[0.0, 4.0], [0.0, 4.0]]], np.float32)  # with a standard deviation of 2
    assert difference(theirs, theirs) == 0
    assert difference(theirs + np.float32(1), theirs) == pytest.approx(0.5)
    assert difference(100 * theirs + 100, 100 * theirs) == pytest.approx(0.5)


def test_a_wrong_head_is_a_larger_difference_than_rounding(load: Load) -> None:
    kernel, graphs = load("int8")
    ids, mask = np.random.default_rng(0).integers(2, 60, (3, 9)), np.ones((3, 9), np.int64)
    source = kernel.model.encode(ids, mask)
    wrong = source.changed(lambda array: array[:, ::-1].copy())
    right, swapped, theirs = (
        model.logits(model.adopt(each), model.cache(3), ids[:, :5]).copy()
        for model, each in ((kernel.model, source), (kernel.model, wrong), (graphs.model, source))
    )
    assert difference(right, theirs) < NEAR < difference(swapped, theirs)


@pytest.mark.parametrize("apart", [0.5, np.nan])
def test_a_kernel_that_disagrees_is_not_chosen(
    apart: float, folders: Callable[[str], Path], load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("int8")
    monkeypatch.delenv("LORA_FT_KERNELS")
    monkeypatch.setattr("lora_ft.export.runtime.kernel_choice.difference", lambda ours, theirs: apart)
    generator = Generator.load(folders("int8"))
    assert generator.model.kernel is None and "differ" in generator.step_engine
    assert generator.model.encoder is None and "differ" in generator.encoder_engine
