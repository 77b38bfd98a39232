"""A family's module agrees with transformers' models: names, shapes, kinds, and layers that share an input."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lora_ft.core.errors import UsageError
from lora_ft.export import families
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.families import FAMILIES, MODEL_TYPES, family_of, t5
from lora_ft.export.precision import KINDS
from tests.export.family import CONFIGS, save_member


@pytest.mark.parametrize("name", CONFIGS)
def test_tensor_shapes_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    architecture, checkpoint = read_model(save_member(tmp_path / "base", name))
    family = architecture.family
    shapes = dict(family.tensor_shapes(architecture))
    embeddings = {f"{layer}.weight" for layer in (family.EMBEDDING, family.HEAD, *family.COPIES)}
    assert {name: shape for name, (_, shape) in checkpoint.described.items() if name not in embeddings} == shapes
    assert {family.layer_kind(tensor.removesuffix(".weight")) for tensor in shapes} <= {"encoder", "decoder"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_linear_layer_reads_one_scalable_input(name: str, tmp_path: Path) -> None:
    architecture, _ = read_model(save_member(tmp_path / "base", name))
    readers = [layer for _, layers in architecture.family.shared_inputs(architecture) for layer in layers]
    shapes = architecture.family.tensor_shapes(architecture)
    linear = {
        name.removesuffix(".weight") for name, shape in shapes if len(shape) == 2 and "relative_attention" not in name
    }
    assert len(readers) == len(set(readers))
    assert set(readers) == linear | {architecture.family.HEAD}


@pytest.mark.parametrize("name", CONFIGS)
def test_norms_and_biases_of_the_decoder_are_tensors(name: str, tmp_path: Path) -> None:
    architecture, _ = read_model(save_member(tmp_path / "base", name))
    shapes = dict(architecture.family.tensor_shapes(architecture))
    norms, biases = (
        architecture.family.norms(architecture, "decoder"),
        architecture.family.biases(architecture, "decoder"),
    )
    assert {f"{norm}.weight" for norm in norms} == {n for n, shape in shapes.items() if len(shape) == 1 and "dec" in n}
    assert {f"{bias}.weight" for bias in biases} == {n for n in shapes if "relative_attention" in n and "dec" in n}


def test_kinds_are_those_of_precisions() -> None:
    layers = (t5.HEAD, t5.EMBEDDING, t5.self_attention("encoder", 0), t5.self_attention("decoder", 0))
    assert {t5.layer_kind(layer) for layer in layers} == set(KINDS)
    assert {t5.layer_kind(layer) for layer in t5.projections(t5.cross_attention(3), "kv")} == {"encoder"}
    assert t5.layer_kind(f"{t5.cross_attention(3)}.q") == "decoder"


def test_only_a_family_imports_its_modules() -> None:
    root = Path(families.__file__).parents[1]
    names = [Path(str(family.__file__)).stem for family in FAMILIES]  # type: ignore[attr-defined]
    private = [f"lora_ft.export.{package}" for package in ("families", "onnx")]
    for path in root.rglob("*.py"):
        if path.parent.name == "families" or path.stem in names:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
                assert not imported & {f"{package}.{name}" for package in private for name in names}, path


def test_a_model_type_has_one_family() -> None:
    assert len(MODEL_TYPES) == len(set(MODEL_TYPES))
    assert all(family_of(name) in FAMILIES for name in MODEL_TYPES)
    with pytest.raises(UsageError, match="model type 'bart' is not supported"):
        family_of("bart")
