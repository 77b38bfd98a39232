"""A batch with several adapters generates the same answers as the bundle of each adapter, in every decoding mode."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.export.runtime import Generator
from lora_ft.export.runtime.manifest import adapter_file, describe, describe_files
from lora_ft.export.runtime.safetensors_file import map_tensors, write_tensors
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.oracle import TEXTS, make_bundle, ragged

ADAPTERS: dict[str, dict[str, Any]] = {
    "whole": {},
    "few": {"rank": 2, "endings": (".q", ".v")},
    "other": {"rank": 3, "endings": (".o", ".wo", ".wi_1")},
}
TASKS: dict[str, dict[str, Any]] = {
    "whole": {},
    "few": {"template": "few {text}", "source_length": 6, "codec": "text"},
    "other": {"generation": {"max_new_tokens": 7}},
}
MANY = [*TEXTS, "", "a", *(f"say: {'word ' * (i * 7 % 11)}{i}" for i in range(10))]
NAMES = [("whole", "few", None, "other", "few")[i % 5] for i in range(len(MANY))]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt_lookup": False},
    "lookup": {"prompt_lookup": True},
    "late": {"min_new_tokens": 6},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.4},
    "edited": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "edited beams": {"num_beams": 2, "no_repeat_ngram_size": 2},
    "labels": {"allowed": ((4, 5, 6), (4, 7), (8,)), "max_new_tokens": 9},
    "label beams": {"allowed": ((4, 5, 6), (4, 7), (8,)), "max_new_tokens": 9, "num_beams": 3},
}


@pytest.fixture(scope="module")
def wholes(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Write merged checkpoints."""
    root = tmp_path_factory.mktemp("merged")
    folders: dict[str | None, Path] = {None: checkpoint}
    for seed, (name, changes) in enumerate(ADAPTERS.items()):
        folders[name] = merged(checkpoint, draw_adapter(checkpoint, seed, **changes), root / name)
    return folders


@pytest.fixture(scope="module")
def bundles(wholes: dict[str | None, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Generator]:
    """Write the bundle of each adapter."""
    root = tmp_path_factory.mktemp("bundles")
    for name, whole in wholes.items():
        make_bundle(whole, root / str(name))
    return {name: Generator.load(root / str(name), threads=1) for name in wholes}


@pytest.fixture(scope="module")
def folder(checkpoint: Path, wholes: dict[str | None, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bank") / "bank"
    members = [
        member(name, draw_adapter(checkpoint, seed, **changes), wholes[name], **TASKS[name])
        for seed, (name, changes) in enumerate(ADAPTERS.items())
    ]
    make_bank(checkpoint, members, out)
    return out


@pytest.fixture(scope="module")
def bank(folder: Path) -> Generator:
    return Generator.load(folder, threads=1)


def alone(
    bundles: dict[str | None, Generator], bank: Generator, texts: list[str], names: list[str | None], **options: Any
) -> list[list[list[int]]]:
    """Return the answers of each text's own bundle with the adapter's settings in the bank."""
    answers = []
    for text, name in zip(texts, names, strict=True):
        task = bank.of(name)
        (row,) = task.tokenizer.encode([text], task.source_length)
        generator = bundles[name]
        merged = {"prompt_lookup": False} | task.defaults | options
        generated = generator._answer_batch(
            [np.array(row)], [None], [0], generator._options(merged, {}, generator.tokenizer)
        )
        answers.append([answer.tokens.tolist() for answer in generated])
    return answers


@pytest.mark.parametrize("mode", WAYS)
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_mixed_batches_match_the_bundle_of_each_adapter(
    bank: Generator, bundles: dict[str | None, Generator], mode: str, batch_size: int
) -> None:
    options = WAYS[mode]
    answers = [answer.tokens.tolist() for answer in bank.answer(MANY, adapter=NAMES, batch_size=batch_size, **options)]
    expected = alone(bundles, bank, MANY, NAMES, **options)
    assert answers == [tokens for some in expected for tokens in some]
    assert len({tuple(tokens) for tokens in answers}) > (1 if "allowed" in options else len(answers) // 3)


def test_scores_and_samples_do_not_depend_on_other_adapters(
    bank: Generator, bundles: dict[str | None, Generator]
) -> None:
    for name in (None, *ADAPTERS):
        options: dict[str, Any] = {"do_sample": True, "top_k": 8, "seed": 5, "output_scores": True, "max_new_tokens": 8}
        ids, mask = ragged([[9, 8, 7, 1], [5, 6, 1]])
        assert np.array_equal(
            bank.generate_ids(ids, mask, adapter=name, **options), bundles[name].generate_ids(ids, mask, **options)
        )
    answers = bank.answer(MANY, adapter=NAMES, output_scores=True)
    again = bank.answer(MANY, adapter=NAMES, output_scores=True, batch_size=1)
    for first, second in zip(answers, again, strict=True):
        assert np.array_equal(first.tokens, second.tokens)
        assert first.scores is not None and second.scores is not None
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)


def test_a_stream_uses_its_adapter(bank: Generator) -> None:
    for name in (None, *ADAPTERS):
        for options in ({}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}):
            for text in MANY[:4]:
                assert (
                    "".join(bank.stream(text, adapter=name, **options))
                    == bank.generate([text], adapter=name, **options)[0]
                )


def test_ids_and_logits_of_rows_with_different_adapters(bank: Generator, bundles: dict[str | None, Generator]) -> None:
    ids, mask = ragged([[9, 8, 7, 1], [5, 6, 1], [30, 1], [4, 4, 4, 4, 1]])
    names = ["few", None, "whole", "other"]
    tokens = bank.generate_ids(ids, mask, adapter=names, max_new_tokens=9)
    logits = bank.score(ids, mask, tokens, adapter=names)
    for i, name in enumerate(names):
        alone = bundles[name].generate_ids(ids[i : i + 1], mask[i : i + 1], max_new_tokens=9)
        assert np.array_equal(tokens[i, : alone.shape[1]], alone[0])
        expected = bundles[name].score(ids[i : i + 1], mask[i : i + 1], tokens[i : i + 1])[0]
        np.testing.assert_allclose(logits[i], expected, atol=2e-3)


def test_each_adapter_has_the_settings_of_its_task(bank: Generator) -> None:
    assert bank.adapters == ["few", "other", "whole"]
    few_settings, other_settings = bank.of("few"), bank.of("other")
    assert few_settings.prompt is not None and few_settings.prompt.fill({"text": "x"}) == "few x"
    assert (few_settings.source_length, few_settings.tokenizer.codec.name) == (6, "text")
    assert other_settings.defaults["max_new_tokens"] == 7 and bank.of("whole").defaults["max_new_tokens"] == 12
    assert bank.of(None) is bank.settings
    long = bank.answer(MANY, adapter=NAMES)
    assert max(len(answer.tokens) for answer, name in zip(long, NAMES, strict=True) if name == "other") <= 7
    assert max(len(answer.tokens) for answer, name in zip(long, NAMES, strict=True) if name == "few") == 12


def test_one_name_applies_to_all_texts(bank: Generator) -> None:
    assert bank.generate(TEXTS, adapter="few") == bank.generate(TEXTS, adapter=["few"] * len(TEXTS))
    assert bank.generate([], adapter=[]) == []
    assert bank.generate(TEXTS) == bank.generate(TEXTS, adapter=[None] * len(TEXTS))
    assert bank.generate(TEXTS) != bank.generate(TEXTS, adapter="few")


def test_an_unknown_adapter_is_refused_with_the_known_names(bank: Generator, generator: Generator) -> None:
    message = r"this bundle has no adapter 'new'; choose one of few, other, whole"
    with pytest.raises(UsageError, match=message):
        bank.generate(TEXTS, adapter=["few"] * (len(TEXTS) - 1) + ["new"])
    with pytest.raises(UsageError, match=message):
        list(bank.stream("a", adapter="new"))
    with pytest.raises(UsageError, match=message):
        bank.of("new")
    with pytest.raises(UsageError, match="no adapter 'new'; omit the adapter"):
        generator.generate(TEXTS, adapter="new")
    with pytest.raises(UsageError, match=r"number of texts \(got 2 for 6\)"):
        bank.generate(TEXTS, adapter=["few", None])


def test_an_adapter_shared_by_a_batch_is_not_copied(bank: Generator) -> None:
    selected = bank.bank and bank.bank.select(["few", "few"])
    assert selected is not None and bank.bank is not None
    names = bank.bank.inputs["bank.step"]
    for value, name in zip(selected.values(names), names, strict=True):
        assert value.shape()[0] == 1
        assert value.data_ptr() == bank.bank.arrays("few")[name].ctypes.data
    assert bank.bank.select([None, None]) is None
    mixed = bank.bank.select(["few", None])
    assert mixed is not None and mixed.values(names)[0].shape()[0] == 2
    single = mixed.take(np.array([0]))
    assert single is not None and single.values(names)[0].shape()[0] == 1
    assert mixed.take(np.array([1])) is None


def damage(bundle: Path, name: str, change: Any) -> None:
    """Change an adapter's arrays and texts, and update its entry in the manifest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (path,) = (bundle / "adapters").glob(f"{name}.*")
    arrays, texts = map_tensors(path)
    arrays = {key: np.array(array) for key, array in arrays.items()}
    change(arrays, texts)
    path.unlink()
    write_tensors(path, arrays, texts)
    manifest["adapters"][name] |= describe(path)
    path.rename(bundle / adapter_file(name, manifest["adapters"][name]["sha256"]))
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, texts: arrays.pop(next(iter(arrays))), "does not match the graphs"),
        (lambda arrays, texts: arrays.update(more=np.ones(3, np.float32)), "does not match the graphs: more differs"),
        (lambda arrays, texts: arrays.update({k: v[..., :1] for k, v in arrays.items()}), "does not match the graphs"),
        (
            lambda arrays, texts: arrays.update({k: v.astype(np.int8) for k, v in arrays.items()}),
            "does not match the graphs",
        ),
        (lambda arrays, texts: texts.clear(), "the metadata lack the task"),
        (lambda arrays, texts: texts.update({"lora-ft": "{"}), "the metadata lack the task"),
    ],
)
def test_an_adapter_that_does_not_fit_the_graphs_is_refused(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    bundle = shutil.copytree(folder, tmp_path / "bank")
    damage(bundle, "few", change)
    bank = Generator.load(bundle, threads=1)
    with pytest.raises(LoraFtError, match=message):
        bank.generate(["a"], adapter="few")
    assert bank.generate(["a"], adapter="other")


def test_loading_refuses_a_changed_or_missing_adapter(folder: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(folder, tmp_path / "bank")
    (path,) = (bundle / "adapters").glob("few.*")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LoraFtError, match="not the file that was published"):
        Generator.load(bundle)
    path.unlink()
    with pytest.raises(LoraFtError, match="lacks adapters/few"):
        Generator.load(bundle)


@pytest.mark.parametrize("name", ["../few", "a/b", "", ".hidden", "x" * 65, "ü"])
def test_adapter_paths_stay_in_the_bank(folder: Path, tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(folder, tmp_path / "bank")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["adapters"][name] = manifest["adapters"].pop("few")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoraFtError, match="has a malformed entry `adapters`"):
        Generator.load(bundle)


def test_a_bank_of_another_version_is_refused(folder: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(folder, tmp_path / "bank")
    (bundle / "bank.json").write_text(json.dumps(json.loads((bundle / "bank.json").read_text()) | {"version": 9}))
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"files": describe_files(bundle)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"bank.json: the version is not supported \(got 9, supported: 2\)"):
        Generator.load(bundle)
