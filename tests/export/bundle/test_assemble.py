"""The files of a bundle: graphs with shared weights, settings, and a manifest with hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.assemble import assemble, read_model, seal
from lora_ft.export.families import t5 as t5_family
from lora_ft.export.onnx.quantization import formats_of
from lora_ft.export.onnx.t5 import T5
from lora_ft.export.precision import FP32, NAMED, Precision
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.cache import Cache, Source
from lora_ft.export.runtime.decoding.draft_length import controller_of
from lora_ft.export.runtime.manifest import (
    DEVICE_STEP,
    FILES,
    GRAPHS,
    LABELS,
    PHRASES,
    PROBE,
    SBOM,
    WEIGHTS,
    read_manifest,
)
from lora_ft.export.runtime.phrases import Phrases
from tests.export.family import save_member
from tests.export.oracle import ORIGIN, TEXTS, entries
from tests.tiny import save_tiny_t5

Assemble = Callable[..., Generator]


@pytest.fixture
def assembled(checkpoint: Path, tmp_path: Path) -> Assemble:
    """Write all files except the manifest. Keywords are metadata, `precision` or `config`."""

    def write(precision: Precision = FP32, config: dict[str, Any] | None = None, **origin: Any) -> Generator:
        architecture, weights = read_model(checkpoint)
        folder = tmp_path / "assembled"
        folder.mkdir()
        t5, tokenizer = (
            T5(architecture, weights, formats_of(precision, t5_family)),
            Tokenizer(checkpoint / "tokenizer.json"),
        )
        config = weights.config | (config or {})
        return assemble(folder, t5, str(precision), config, tokenizer, replace(ORIGIN, **origin))

    return write


def test_an_assembled_bundle_generates_answers(assembled: Assemble, generator: Generator) -> None:
    bundle = assembled()
    assert entries(bundle.folder) == {*FILES, DEVICE_STEP} - {PROBE}
    assert bundle.generate(TEXTS) == generator.generate(TEXTS)
    assert bundle.generate(TEXTS, num_beams=3) == generator.generate(TEXTS, num_beams=3)


@pytest.mark.parametrize("precision", ["fp32", "int8-w4"])
def test_graphs_share_a_file_of_weights(assembled: Assemble, precision: str) -> None:
    folder, used = assembled(NAMED[precision]).folder, set()
    size = (folder / WEIGHTS).stat().st_size
    for name in GRAPHS:
        model = onnx.load(folder / name, load_external_data=False)
        assert model.ir_version == 10
        assert {entry.domain for entry in model.opset_import} == {"", "com.microsoft"}
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entry = {entry.key: entry.value for entry in tensor.external_data}
                assert entry["location"] == WEIGHTS
                used.add((int(entry["offset"]), int(entry["offset"]) + int(entry["length"])))
        ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    assert max(end for _, end in used) == size
    assert sum(end - start for start, end in used) > size / 3
    assert len({start for start, _ in used}) == len(used)


@pytest.mark.parametrize("labels", [("yes", "no"), ()])
def test_a_bundle_has_a_graph_for_its_labels(assembled: Assemble, tmp_path: Path, labels: tuple[str, ...]) -> None:
    bundle, out = assembled(labels=labels), tmp_path / "sealed"
    (bundle.folder / PROBE).write_text("{}")
    out.mkdir()
    seal(bundle.folder, bundle.manifest, out, family="T5", prompt_lookup=False)
    assert set(read_manifest(out)["files"]) == {*FILES, DEVICE_STEP, SBOM, *([LABELS] if labels else [])}
    if labels:
        (out / LABELS).unlink()
        with pytest.raises(LoraFtError, match=r"lacks labels\.onnx"):
            read_manifest(out)


def test_a_bundle_without_a_task_has_no_prompt(assembled: Assemble) -> None:
    assert assembled(template=None).prompt is None


def test_a_prompt_in_any_script_is_kept(assembled: Assemble) -> None:
    prompt = assembled(template="übersetze → {wörter} {{}}").prompt
    assert prompt is not None
    assert prompt.fill({"wörter": "x"}) == "übersetze → x {}"


def test_limits_come_from_the_metadata(assembled: Assemble) -> None:
    bundle = assembled(source_length=5, generation={"max_new_tokens": 3, "num_beams": 2})
    assert bundle.source_length == 5
    assert bundle.defaults == {"max_new_tokens": 3, "num_beams": 2, "prompt_lookup": False}
    assert max(len(answer.tokens) for answer in bundle.answer(TEXTS)) == 3


@pytest.mark.parametrize("lookup", [True, False])
def test_a_sealed_bundle_can_be_loaded(assembled: Assemble, tmp_path: Path, lookup: bool) -> None:
    bundle, out = assembled(), tmp_path / "sealed"
    (bundle.folder / PROBE).write_text("{}")
    out.mkdir()
    seal(bundle.folder, {**bundle.manifest, "why": "as a test"}, out, family="T5", prompt_lookup=lookup)
    manifest = read_manifest(out)
    assert entries(out) == {*FILES, DEVICE_STEP, SBOM, "manifest.json"}
    assert manifest["why"] == "as a test"
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(), "bytes": (out / name).stat().st_size}
        for name in (*FILES, DEVICE_STEP, SBOM)
    }
    assert json.loads((out / "generation_config.json").read_text())["prompt_lookup"] is lookup
    assert Generator.load(out, threads=1).generate(TEXTS) == bundle.generate(TEXTS)


def test_phrases_are_a_checked_part_of_a_bundle_and_change_no_answer(
    assembled: Assemble, generator: Generator, tmp_path: Path
) -> None:
    answers = [answer.tokens.tolist() for answer in generator.answer(TEXTS)]
    bundle, out = assembled(phrases=Phrases.count(answers * 3, generator.special.start)), tmp_path / "sealed"
    (bundle.folder / PROBE).write_text("{}")
    out.mkdir()
    seal(bundle.folder, bundle.manifest, out, family="T5", prompt_lookup=True)
    manifest = read_manifest(out)
    assert PHRASES in manifest["files"]
    assert manifest["drafts"]["version"] == 1
    assert manifest["drafts"]["entries"] > 0
    calls = counted_calls(loaded := Generator.load(out, threads=1))
    assert [answer.tokens.tolist() for answer in loaded.answer(TEXTS)] == answers
    drafted = len(calls)
    loaded.answer(TEXTS, prompt_lookup=False)
    assert drafted < len(calls) - drafted
    (out / PHRASES).write_bytes(b"changed")
    with pytest.raises(LoraFtError, match=PHRASES):
        Generator.load(out)


def counted_calls(generator: Generator) -> list[int]:
    """Return a list that gets the width of every call of the decoder."""
    widths, step = list[int](), generator.model.step

    def counted(source: Source, cache: Cache, tokens: np.ndarray, **options: Any) -> np.ndarray:
        widths.append(tokens.shape[1])
        return step(source, cache, tokens, **options)

    generator.model.step = counted  # type: ignore[method-assign]
    return widths


def test_phrases_of_another_version_are_not_used(assembled: Assemble) -> None:
    bundle = assembled(phrases=Phrases.count([[5, 6, 1]] * 3, 0))
    versions = {1: 0, 2: 0}
    for version in versions:
        content = {**bundle.manifest, "drafts": {"version": version}}
        versions[version] = len(controller_of(Generator(bundle.folder, content, 1).model).phrases)
    assert versions[1] > versions[2] == 0


@pytest.mark.parametrize("name", FILES)
def test_the_manifest_has_the_hash_of_every_file(assembled: Assemble, tmp_path: Path, name: str) -> None:
    bundle, out = assembled(), tmp_path / "sealed"
    (bundle.folder / PROBE).write_text("{}")
    out.mkdir()
    seal(bundle.folder, bundle.manifest, out, family="T5", prompt_lookup=False)
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(LoraFtError, match=name):
        Generator.load(out)


@pytest.mark.parametrize("name", ["t5 1.0", "umt5", "mt5"])
def test_read_model_returns_architecture_and_weights(tmp_path: Path, name: str) -> None:
    folder = save_member(tmp_path, name)
    architecture, weights = read_model(folder)
    assert architecture.kind == name.split()[0]
    for key, value in load_file(folder / "model.safetensors").items():
        assert np.array_equal(weights[key], value)


def test_a_missing_head_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path)
    values = load_file(folder / "model.safetensors")
    del values["lm_head.weight"]
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        LoraFtError, match=r"lacks lm_head\.weight.*correct config\.json.*tie_word_embeddings"
    ) as caught:
        read_model(folder)
    assert caught.value.exit_code == 1


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bart"}))
    with pytest.raises(UsageError, match="the model type 'bart' is not supported"):
        read_model(folder)
