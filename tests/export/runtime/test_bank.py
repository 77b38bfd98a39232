"""A batch that mixes adapters says what each adapter's own bundle says, whatever chooses the tokens."""

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
    """Merged checkpoints."""
    root = tmp_path_factory.mktemp("merged")
    found: dict[str | None, Path] = {None: checkpoint}
    for seed, (name, changes) in enumerate(ADAPTERS.items()):
        found[name] = merged(checkpoint, draw_adapter(checkpoint, seed, **changes), root / name)
    return found


@pytest.fixture(scope="module")
def own(wholes: dict[str | None, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Generator]:
    """Each adapter's own bundle."""
    root = tmp_path_factory.mktemp("own")
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
    own: dict[str | None, Generator], bank: Generator, texts: list[str], names: list[str | None], **options: Any
) -> list[list[list[int]]]:
    """What each text's own bundle says under the settings that the bank has for its adapter."""
    found = []
    for text, name in zip(texts, names, strict=True):
        task = bank.of(name)
        (row,) = task.tokenizer.encode([text], task.source_length)
        generator = own[name]
        chosen = {"prompt_lookup": False} | task.defaults | options
        made = generator._answer_batch([np.array(row)], [None], [0], generator._options(chosen, {}))
        found.append([answer.tokens.tolist() for answer in made])
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_mixed_batches_say_what_each_adapters_own_bundle_says(
    bank: Generator, own: dict[str | None, Generator], way: str, batch_size: int
) -> None:
    options = WAYS[way]
    made = [answer.tokens.tolist() for answer in bank.answer(MANY, adapter=NAMES, batch_size=batch_size, **options)]
    expected = alone(own, bank, MANY, NAMES, **options)
    assert made == [tokens for some in expected for tokens in some]
    assert len({tuple(tokens) for tokens in made}) > (1 if "allowed" in options else len(made) // 3)


def test_scores_and_samples_are_those_of_the_same_rows_alone(bank: Generator, own: dict[str | None, Generator]) -> None:
    for name in (None, *ADAPTERS):
        options: dict[str, Any] = {"do_sample": True, "top_k": 8, "seed": 5, "output_scores": True, "max_new_tokens": 8}
        ids, mask = ragged([[9, 8, 7, 1], [5, 6, 1]])
        assert np.array_equal(
            bank.generate_ids(ids, mask, adapter=name, **options), own[name].generate_ids(ids, mask, **options)
        )
    made = bank.answer(MANY, adapter=NAMES, output_scores=True)
    again = bank.answer(MANY, adapter=NAMES, output_scores=True, batch_size=1)
    for one, other in zip(made, again, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert one.scores is not None and other.scores is not None
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_a_stream_is_of_its_adapter(bank: Generator) -> None:
    for name in (None, *ADAPTERS):
        for options in ({}, {"num_beams": 2}, {"no_repeat_ngram_size": 2}):
            for text in MANY[:4]:
                assert (
                    "".join(bank.stream(text, adapter=name, **options))
                    == bank.generate([text], adapter=name, **options)[0]
                )


def test_ids_and_logits_of_rows_with_unlike_adapters(bank: Generator, own: dict[str | None, Generator]) -> None:
    ids, mask = ragged([[9, 8, 7, 1], [5, 6, 1], [30, 1], [4, 4, 4, 4, 1]])
    names = ["few", None, "whole", "other"]
    made = bank.generate_ids(ids, mask, adapter=names, max_new_tokens=9)
    logits = bank.score(ids, mask, made, adapter=names)
    for i, name in enumerate(names):
        alone = own[name].generate_ids(ids[i : i + 1], mask[i : i + 1], max_new_tokens=9)
        assert np.array_equal(made[i, : alone.shape[1]], alone[0])
        expected = own[name].score(ids[i : i + 1], mask[i : i + 1], made[i : i + 1])[0]
        np.testing.assert_allclose(logits[i], expected, atol=2e-3)


def test_each_adapter_has_the_settings_of_its_task(bank: Generator) -> None:
    assert bank.adapters == ["few", "other", "whole"]
    few, other = bank.of("few"), bank.of("other")
    assert few.prompt is not None and few.prompt.fill({"text": "x"}) == "few x"
    assert (few.source_length, few.tokenizer.codec.name) == (6, "text")
    assert other.defaults["max_new_tokens"] == 7 and bank.of("whole").defaults["max_new_tokens"] == 12
    assert bank.of(None) is bank.settings
    long = bank.answer(MANY, adapter=NAMES)
    assert max(len(one.tokens) for one, name in zip(long, NAMES, strict=True) if name == "other") <= 7
    assert max(len(one.tokens) for one, name in zip(long, NAMES, strict=True) if name == "few") == 12


def test_one_name_is_that_of_all_texts(bank: Generator) -> None:
    assert bank.generate(TEXTS, adapter="few") == bank.generate(TEXTS, adapter=["few"] * len(TEXTS))
    assert bank.generate([], adapter=[]) == []
    assert bank.generate(TEXTS) == bank.generate(TEXTS, adapter=[None] * len(TEXTS))
    assert bank.generate(TEXTS) != bank.generate(TEXTS, adapter="few")


def test_an_adapter_that_there_is_not_is_named_with_those_there_are(bank: Generator, generator: Generator) -> None:
    message = r"this bundle has no adapter 'new'; there are few, other, whole"
    with pytest.raises(UsageError, match=message):
        bank.generate(TEXTS, adapter=["few"] * (len(TEXTS) - 1) + ["new"])
    with pytest.raises(UsageError, match=message):
        list(bank.stream("a", adapter="new"))
    with pytest.raises(UsageError, match=message):
        bank.of("new")
    with pytest.raises(UsageError, match="no adapter 'new'; it has none"):
        generator.generate(TEXTS, adapter="new")
    with pytest.raises(UsageError, match="2 adapters were named for 6 texts"):
        bank.generate(TEXTS, adapter=["few", None])


def test_an_adapter_of_one_batch_is_read_where_it_lies(bank: Generator) -> None:
    chosen = bank.bank and bank.bank.choose(["few", "few"])
    assert chosen is not None and bank.bank is not None
    names = bank.bank.inputs["bank.step"]
    for value, name in zip(chosen.values(names), names, strict=True):
        assert value.shape()[0] == 1
        assert value.data_ptr() == bank.bank.arrays("few")[name].ctypes.data
    assert bank.bank.choose([None, None]) is None
    mixed = bank.bank.choose(["few", None])
    assert mixed is not None and mixed.values(names)[0].shape()[0] == 2
    one = mixed.take(np.array([0]))
    assert one is not None and one.values(names)[0].shape()[0] == 1
    assert mixed.take(np.array([1])) is None


def damage(bundle: Path, name: str, change: Any) -> None:
    """Change an adapter's arrays and texts, and its entry in the manifest to fit."""
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
        (lambda arrays, texts: arrays.pop(next(iter(arrays))), "is for other graphs"),
        (lambda arrays, texts: arrays.update(more=np.ones(3, np.float32)), "is for other graphs: more differs"),
        (lambda arrays, texts: arrays.update({k: v[..., :1] for k, v in arrays.items()}), "is for other graphs"),
        (lambda arrays, texts: arrays.update({k: v.astype(np.int8) for k, v in arrays.items()}), "is for other graphs"),
        (lambda arrays, texts: texts.clear(), "does not say what it is for"),
        (lambda arrays, texts: texts.update({"lora-ft": "{"}), "does not say what it is for"),
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


def test_a_changed_or_missing_adapter_is_found_when_the_bank_is_loaded(folder: Path, tmp_path: Path) -> None:
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
def test_no_adapter_lies_elsewhere(folder: Path, tmp_path: Path, name: str) -> None:
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
    with pytest.raises(UsageError, match=r"bank.json is of version 9; this is for 2"):
        Generator.load(bundle)
