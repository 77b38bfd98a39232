"""Folders of models: adapters, checkpoints, bundles and their manifests; and the options of generation."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given

from lora_ft.core.errors import LoraFtError
from lora_ft.export.runtime import Generator
from lora_ft.models.bases import find_base, load_model, load_tokenizer
from lora_ft.models.merging import merge_in_memory
from lora_ft.runs.run import Run
from tests.fuzz.limits import fuzz, seeds, survives
from tests.fuzz.mutations import ODD_VALUES, damaged_bytes, damaged_json, json_bytes, odd_value

OPTIONS = {
    "max_new_tokens": 4,
    "min_new_tokens": 1,
    "num_beams": 2,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "early_stopping": True,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.2,
    "seed": 1,
    "prompt_lookup": False,
}


def _copy(source: Path, scratch: Path, name: str) -> Path:
    """Return a copy made of hard links, except that files to be damaged are replaced."""
    target = scratch / name
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, copy_function=os.link))


def _damage(random: Random, path: Path, *, values: bool | None = None) -> None:
    """Damage a file, JSON as a value or as bytes; or delete it."""
    content = path.read_bytes()
    path.unlink()
    as_value = path.suffix == ".json" and (random.random() < 0.7 if values is None else values)
    if as_value:
        path.write_bytes(json_bytes(damaged_json(random, json.loads(content))))
    elif random.random() < 0.9:
        path.write_bytes(damaged_bytes(random, content))


@pytest.fixture
def base_loaded_once(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the base, which is not damaged: loading it took four fifths of an input's time."""
    base = load_model(tiny_base)
    monkeypatch.setattr("lora_ft.models.merging.load_model", lambda folder, **_: copy.deepcopy(base))


@fuzz
@example(seed=774)  # layers_to_transform as a text
@example(seed=707)  # lora_alpha so large that merged weights overflow
@given(seed=seeds)
def test_an_adapter_folder(scratch: Path, small_run: Run, base_loaded_once: None, seed: int) -> None:
    random = Random(seed)
    folder = _copy(small_run.folder, scratch, "run")
    _damage(random, random.choice([file for file in (folder / "adapter").iterdir() if file.suffix != ".md"]))
    survives(lambda: merge_in_memory(Run(folder)))


@fuzz
@given(seed=seeds)
def test_a_checkpoint_folder(scratch: Path, tiny_base: Path, seed: int) -> None:
    random = Random(seed)
    folder = _copy(tiny_base, scratch, "checkpoint")
    _damage(random, random.choice(sorted(folder.iterdir())))

    def load() -> None:
        base = find_base(str(folder))
        load_tokenizer(base.folder)
        load_model(base.folder)

    survives(load)


@fuzz
@given(seed=seeds)
def test_a_damaged_bundle_is_never_loaded(scratch: Path, small_bundle: Path, seed: int) -> None:
    random = Random(seed)
    folder = _copy(small_bundle, scratch, "bundle")
    named = json.loads((folder / "manifest.json").read_bytes())["files"]
    path = folder / random.choice(sorted(named))
    before = path.read_bytes()
    _damage(random, path)
    result = survives(lambda: Generator.load(folder, threads=1))
    unchanged = path.is_file() and path.read_bytes() == before
    assert unchanged or isinstance(result, LoraFtError), f"{path.name} was changed and not refused"


@fuzz
@given(seed=seeds)
def test_a_manifest(scratch: Path, small_bundle: Path, seed: int) -> None:
    folder = _copy(small_bundle, scratch, "manifest")
    _damage(Random(seed), folder / "manifest.json")
    survives(lambda: Generator.load(folder, threads=1))


@fuzz
@example(seed=202)  # a tokenizer whose ids the model does not have
@given(seed=seeds)
def test_settings_of_a_bundle_whose_manifest_agrees(scratch: Path, small_bundle: Path, seed: int) -> None:
    """A bundle whose file and hash were both changed must be refused with our error."""
    random = Random(seed)
    folder = _copy(small_bundle, scratch, "agrees")
    names = ("prompt.json", "generation_config.json", "config.json", "tokenizer.json")
    path = folder / random.choice(names)
    _damage(random, path, values=True)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_bytes())
    raw = path.read_bytes()
    content["files"][path.name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    manifest.unlink()
    manifest.write_text(json.dumps(content))
    survives(lambda: Generator.load(folder, threads=1).generate(["abc"], max_new_tokens=3))


@pytest.mark.parametrize("method", ["generate", "stream"])
@fuzz
@given(seed=seeds)
def test_options_of_generation(small_bundle: Path, method: str, seed: int) -> None:
    random = Random(seed)
    generator = _loaded(small_bundle)
    options = {name: value for name, value in OPTIONS.items() if random.random() < 0.4}
    for name in random.sample(sorted(OPTIONS), random.randint(1, 3)):
        options[name] = odd_value(random)
    if random.random() < 0.1:
        options[random.choice(("", "eos", "max_length", "Num_beams"))] = 1
    if options.get("max_new_tokens") not in (None, *ODD_VALUES):
        options["max_new_tokens"] = 4
    if method == "generate":
        survives(lambda: generator.generate(["abc", "de"], **options))
    else:
        survives(lambda: list(generator.stream("abc", **options)))


_generators: dict[Path, Generator] = {}


def _loaded(folder: Path) -> Generator:
    if folder not in _generators:
        _generators[folder] = Generator.load(folder, threads=1)
    return _generators[folder]
