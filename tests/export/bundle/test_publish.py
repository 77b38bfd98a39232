"""A bundle is published only if its fp32 graphs match PyTorch, and completely or not at all."""

from __future__ import annotations

import datetime
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.publish import Candidate, Selection, take_last, write_bundle
from lora_ft.export.bundle.source import ExportSource
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.families import t5 as family
from lora_ft.export.onnx.smoothquant import Sample
from lora_ft.export.onnx.t5 import T5
from lora_ft.export.parity import Probe, Reference
from lora_ft.export.precision import FP32, NAMED, Precision, parse
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import DEVICE_STEP, FILES, SBOM
from tests.export.family import CONFIGS, save_member
from tests.export.oracle import ORIGIN, SPECIAL, TEXTS, entries, make_bundle, redraw, references, torch_model
from tests.tiny import save_tiny_t5

WHOLE = {*FILES, DEVICE_STEP, SBOM, "manifest.json"}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def manifest_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def wrong_logits(answer: Reference) -> Reference:
    logits = answer.logits.copy()
    logits[0, 0, 5] += 0.01
    return replace(answer, logits=logits)


def wrong_tokens(answer: Reference) -> Reference:
    tokens = answer.tokens.copy()
    tokens[0, 0] = tokens[0, 0] % 70 + 5
    return replace(answer, tokens=tokens)


def no_number(answer: Reference) -> Reference:
    return replace(answer, logits=np.full_like(answer.logits, np.nan))


def test_a_bundle_has_exactly_the_expected_files(checkpoint: Path, tmp_path: Path) -> None:
    report = make_bundle(checkpoint, tmp_path / "new" / "bundle")
    assert report.passed
    assert report.rows == len(TEXTS)
    assert entries(tmp_path / "new" / "bundle") == WHOLE
    assert entries(tmp_path / "new") == {"bundle"}


def test_the_manifest_lists_hash_and_size_of_each_file(published: Path) -> None:
    assert manifest_of(published)["files"] == {
        name: {"sha256": digests(published)[name], "bytes": (published / name).stat().st_size}
        for name in (*FILES, DEVICE_STEP, SBOM)
    }


def test_the_manifest_names_the_origin(checkpoint: Path, tmp_path: Path) -> None:
    report = make_bundle(checkpoint, tmp_path / "bundle", base="a/base", adapter="mine", versions={"torch": "9.9"})
    manifest = manifest_of(tmp_path / "bundle")
    assert (manifest["format"], manifest["version"]) == ("lora-ft bundle", 5)
    assert (manifest["base"], manifest["adapter"], manifest["precision"]) == ("a/base", "mine", "fp32")
    assert manifest["parity"] == report.as_dict()
    assert manifest["versions"]["torch"] == "9.9"
    assert manifest["versions"]["onnx"] == onnx.__version__
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(manifest["created"])
    assert datetime.timedelta() <= age < datetime.timedelta(minutes=5)


def test_a_bundle_includes_prompt_and_limits(published: Path, checkpoint: Path) -> None:
    assert json.loads((published / "prompt.json").read_text()) == {
        "template": "say: {text}",
        "codec": "none",
        "source_length": 48,
    }
    assert json.loads((published / "generation_config.json").read_text()) == {
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **ORIGIN.generation,
        "prompt_lookup": True,
    }
    assert json.loads((published / "config.json").read_text()) == json.loads((checkpoint / "config.json").read_text())


@pytest.mark.parametrize("wrong", [wrong_logits, wrong_tokens, no_number])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_bundle_that_differs_from_pytorch_is_not_written(
    checkpoint: Path, tmp_path: Path, wrong: Any, batch: int
) -> None:
    answers = list(references(checkpoint))
    answers[batch] = wrong(answers[batch])
    with pytest.raises(LoraFtError, match="differ from PyTorch") as caught:
        make_bundle(checkpoint, tmp_path / "bundle", references=answers)
    assert caught.value.exit_code == 1
    assert entries(tmp_path) == set()


def test_answers_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    answers = references(save_tiny_t5(tmp_path / "other", seed=7))
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, tmp_path / "bundle", references=answers)
    assert entries(tmp_path) == {"other"}


def test_a_bundle_without_references_is_not_written(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraFtError, match="0 of 0 rows"):
        make_bundle(checkpoint, tmp_path / "bundle", references=[])
    assert entries(tmp_path) == set()


def test_a_failing_reference_leaves_no_files(checkpoint: Path, tmp_path: Path) -> None:
    def failing() -> Iterator[Reference]:
        yield next(references(checkpoint))
        raise MemoryError

    with pytest.raises(MemoryError):
        make_bundle(checkpoint, tmp_path / "bundle", references=failing())
    assert entries(tmp_path) == set()


def test_a_failure_keeps_the_existing_bundle(bundle: Path, checkpoint: Path) -> None:
    before = digests(bundle)
    answers = [wrong_logits(answer) for answer in references(checkpoint)]
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, bundle, references=answers, overwrite=True)
    assert digests(bundle) == before
    assert entries(bundle.parent) == {"bundle"}
    Generator.load(bundle, threads=1)


def test_an_existing_bundle_is_refused_before_any_work(bundle: Path, checkpoint: Path) -> None:
    before = digests(bundle)

    def untouched() -> Iterator[Reference]:
        raise AssertionError("references were taken")
        yield

    with pytest.raises(UsageError, match="already exists"):
        make_bundle(checkpoint, bundle, references=untouched())
    assert digests(bundle) == before
    assert entries(bundle.parent) == {"bundle"}


def test_overwriting_replaces_the_whole_bundle(bundle: Path, checkpoint: Path) -> None:
    (bundle / "stale.onnx").write_text("of the old one")
    make_bundle(checkpoint, bundle, adapter="newer", overwrite=True)
    assert entries(bundle) == WHOLE
    assert entries(bundle.parent) == {"bundle"}
    assert manifest_of(bundle)["adapter"] == "newer"


def test_an_unsupported_model_leaves_no_files(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    answers = list(references(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bart"}))
    with pytest.raises(UsageError, match="model type 'bart' is not supported"):
        make_bundle(folder, tmp_path / "bundle", references=answers, probe=answers[0])
    assert entries(tmp_path) == {"base"}


def test_damaged_weights_leave_no_files(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "base")
    answers = list(references(folder))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoraFtError, match=r"model\.safetensors"):
        make_bundle(folder, tmp_path / "bundle", references=answers, probe=answers[0])
    assert entries(tmp_path) == {"base"}


def test_a_wrong_graph_is_not_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(T5):
        def __init__(self, architecture: Architecture, *args: Any) -> None:
            super().__init__(replace(architecture, epsilon=0.1), *args)

    monkeypatch.setattr(family, "graph_parts", Wrong)
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, tmp_path / "bundle")
    assert entries(tmp_path) == set()


@pytest.fixture(scope="module")
def answers(checkpoint: Path) -> list[Reference]:
    return list(references(checkpoint))


SAMPLES = [Sample(np.arange(5, 30), np.array([0, 9, 8, 7])), Sample(np.arange(40, 60), np.array([0, 30, 40]))]
ROUNDED = [NAMED["int8"], NAMED["int8-w4"]]


@pytest.fixture
def publish(checkpoint: Path, tmp_path: Path, answers: list[Reference]) -> Callable[..., Candidate]:
    """Write `out` below the test's folder."""

    def write(**options: Any) -> Candidate:
        rows, samples = options.pop("references", answers), options.pop("samples", SAMPLES)
        tokenizer = Tokenizer(checkpoint / "tokenizer.json")
        source = ExportSource(checkpoint, tokenizer, ORIGIN, rows, answers[1], samples)
        selection = Selection(options.pop("precisions", ROUNDED), options.pop("choose", take_last))
        return write_bundle(source, tmp_path / "out", selection=selection, **options)

    return write


def test_stages_are_reported_when_they_begin(answers: list[Reference], publish: Callable[..., Candidate]) -> None:
    stages: list[str] = []

    def watched(name: str, items: Sequence[Any]) -> Iterator[Any]:
        stages.append(name)
        yield from items

    publish(references=watched("references", answers), samples=watched("samples", SAMPLES), progress=stages.append)
    assert stages == [
        "references",
        "building fp32",
        "comparing fp32",
        "calibrating",
        "samples",
        *("building int8", "comparing int8", "building int8-w4", "comparing int8-w4"),
    ]


def test_fp32_is_always_tried_first_and_once(publish: Callable[..., Candidate]) -> None:
    precisions: list[Precision] = []

    def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        precisions.extend(candidate.precision for candidate in candidates)
        assert candidates[0].report.passed
        assert not any(candidate.report.passed for candidate in candidates[1:])
        return candidates[0], {}

    assert publish(precisions=[NAMED["int8"], FP32, NAMED["w4"]], choose=choose).precision == FP32
    assert precisions == [FP32, NAMED["int8"], NAMED["w4"]]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_chosen_candidate_is_published(tmp_path: Path, publish: Callable[..., Candidate], number: int) -> None:
    tried: dict[str, Any] = {}

    def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        for candidate in candidates:
            folder = candidate.generator.folder
            assert candidate.bytes == sum(path.stat().st_size for path in folder.iterdir())
        generator = candidates[number].generator
        tried["greedy"], tried["beams"] = generator.generate(TEXTS), generator.generate(TEXTS, num_beams=3)
        return candidates[number], {"gate": {"passed": number == 0}}

    published = publish(choose=choose)
    manifest, generator = manifest_of(tmp_path / "out"), Generator.load(tmp_path / "out", threads=1)
    assert manifest["precision"] == str(published.precision) == ["fp32", "int8", "int8-w4"][number]
    assert manifest["parity"] == published.report.as_dict()
    assert manifest["gate"] == {"passed": number == 0}
    assert tried == {"greedy": generator.generate(TEXTS), "beams": generator.generate(TEXTS, num_beams=3)}
    assert entries(tmp_path / "out") == WHOLE - ({DEVICE_STEP} if number else set())


def test_the_last_precision_is_published_by_default(tmp_path: Path, publish: Callable[..., Candidate]) -> None:
    publish(precisions=[NAMED["w8"], parse("encoder=int8,head=w4")])
    assert manifest_of(tmp_path / "out")["precision"] == "encoder=int8,decoder=fp32,head=w4,embedding=fp32"


def test_a_refused_selection_leaves_no_files(tmp_path: Path, publish: Callable[..., Candidate]) -> None:
    def refuse(candidates: Sequence[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        raise LoraFtError("costs too much")

    with pytest.raises(LoraFtError, match="costs too much"):
        publish(choose=refuse)
    assert entries(tmp_path) == set()


def test_wrong_graphs_are_refused_before_calibration(
    tmp_path: Path, answers: list[Reference], publish: Callable[..., Candidate]
) -> None:
    untouched = (pytest.fail(message) for message in ["samples were taken"])
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        publish(
            references=[wrong_logits(answers[0])], samples=untouched, choose=lambda _: pytest.fail("there was a choice")
        )
    assert entries(tmp_path) == set()


def test_fp32_alone_needs_no_samples(publish: Callable[..., Candidate]) -> None:
    publish(precisions=[FP32], samples=(pytest.fail(message) for message in ["samples were taken"]))


@pytest.mark.parametrize("lossless", [True, False])
def test_prompt_lookup_is_enabled_if_lossless(
    tmp_path: Path, publish: Callable[..., Candidate], lossless: bool
) -> None:
    def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, dict[str, Any]]:
        report = candidates[0].report
        assert report.lookup_rows == report.rows
        return replace(candidates[0], report=replace(report, lookup_rows=report.rows - (not lossless))), {}

    publish(choose=choose)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["prompt_lookup"] is lossless
    assert Generator.load(tmp_path / "out").defaults["prompt_lookup"] is lossless


@pytest.mark.parametrize("good", [True, False])
def test_scratch_folders_are_deleted(
    tmp_path: Path, publish: Callable[..., Candidate], monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    if good:
        publish()
    else:
        with pytest.raises(LoraFtError):
            publish(references=[])
    assert entries(tmp_path / "scratch") == set()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "byt5"])
def test_every_config_is_published(tmp_path: Path, name: str) -> None:
    report = make_bundle(save_member(tmp_path / "t5", name, end=1.5), tmp_path / "bundle")
    assert report.passed and report.lookup_is_lossless
    assert len(Generator.load(tmp_path / "bundle", threads=1).generate(TEXTS)) == len(TEXTS)


def test_the_source_may_override_head_scaling(tmp_path: Path) -> None:
    """transformers 5 scales every umt5, and 4.57 only those with a tied head in their config."""
    folder = redraw(save_tiny_t5(tmp_path / "umt5", model_type="umt5", tie_word_embeddings=False), seed=3, end=1.5)
    scaled = torch_model(folder).config.tie_word_embeddings
    assert make_bundle(folder, tmp_path / "bundle", scaled=scaled).passed
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(folder, tmp_path / "other", scaled=not scaled)
    assert entries(tmp_path) == {"umt5", "bundle"}


def test_the_probe_is_published_with_the_bundle(
    tmp_path: Path, publish: Callable[..., Candidate], answers: list[Reference]
) -> None:
    publish(precisions=[FP32])
    probe, generator = Probe.read(tmp_path / "out" / "probe.json"), Generator.load(tmp_path / "out", threads=1)
    assert probe == Probe.of(answers[1], SPECIAL)
    report = probe.check(generator)
    assert report.passed and report.rows == len(answers[1].tokens)
    assert manifest_of(tmp_path / "out")["probe"] == report.as_dict()


@pytest.mark.parametrize("damage", [wrong_logits, wrong_tokens])
def test_a_bundle_that_fails_its_probe_is_not_written(
    tmp_path: Path, checkpoint: Path, answers: list[Reference], damage: Callable[[Reference], Reference]
) -> None:
    wrong = replace(answers[1], tokens=damage(answers[1]).tokens, logits=10 * damage(answers[1]).logits)
    with pytest.raises(LoraFtError, match="differ from PyTorch"):
        make_bundle(checkpoint, tmp_path / "out", probe=wrong)
    assert not (tmp_path / "out").exists()


def test_rounding_requires_calibration_rows(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(LoraFtError, match="no calibration rows"):
        make_bundle(checkpoint, tmp_path / "out", precisions=[NAMED["int8"]], samples=())
    assert not (tmp_path / "out").exists()


def test_a_repeated_precision_is_built_once(tmp_path: Path, checkpoint: Path) -> None:
    make_bundle(checkpoint, tmp_path / "out", precisions=[NAMED["w8"], NAMED["w8"]])
    assert manifest_of(tmp_path / "out")["precision"] == "w8"


def test_answers_that_are_only_padding_are_compared(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path / "tiny", tie_word_embeddings=True, feed_forward_proj="relu")
    assert make_bundle(redraw(folder, seed=0), tmp_path / "out").passed
