"""Precisions are parsed from text and printed as text, and select a format per kind of layer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.export.families import t5
from lora_ft.export.onnx.quantization import WEIGHT_FORMATS, Blocks, formats_of
from lora_ft.export.precision import (
    FORMATS,
    KINDS,
    NAMED,
    PROVIDERS,
    Precision,
    candidates,
    markdown_tables,
    parse,
)

ROOT = Path(__file__).parents[2]
MIXED = Precision(encoder="int8", decoder="w8", head="w4", embedding="fp32")


@pytest.mark.parametrize("name", NAMED)
def test_named_precisions_survive_parsing(name: str) -> None:
    assert parse(name) == NAMED[name]
    assert str(parse(name)) == name


@given(st.builds(Precision, *[st.sampled_from(sorted(WEIGHT_FORMATS))] * len(KINDS)))
def test_mixtures_survive_parsing(precision: Precision) -> None:
    assert parse(str(precision)) == precision


def test_a_mixture_without_a_name_is_written_out() -> None:
    assert str(MIXED) == "encoder=int8,decoder=w8,head=w4,embedding=fp32"
    assert parse("embedding=fp32,head=w4,encoder=int8,decoder=w8") == MIXED


def test_omitted_kinds_are_fp32() -> None:
    assert parse("head=w4") == Precision("fp32", "fp32", "w4", "fp32")


def test_a_named_mixture_prints_its_name() -> None:
    assert str(parse("encoder=int8,decoder=w4g128,head=w8,embedding=int8")) == "int8-w4"
    assert str(parse("encoder=fp32")) == "fp32"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fp8",
        "INT8",
        "w4,",
        "int8,w4",
        "head",
        "head=",
        "=w4",
        "head=w2",
        "heads=w4",
        "head:w4",
        "head=w4=w8",
        "head=w4, decoder=w4",
        "encoder=int8;head=w4",
        "auto",
    ],
)
def test_an_unknown_precision_is_refused_with_the_known_names(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    assert repr(text) in caught.value.message
    assert all(name in caught.value.remedy for name in (*NAMED, *WEIGHT_FORMATS, *KINDS))


@pytest.mark.parametrize(
    ("layer", "storage"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q", "int8"),
        ("encoder.block.11.layer.1.DenseReluDense.wo", "int8"),
        ("decoder.block.0.layer.1.EncDecAttention.k", "int8"),
        ("decoder.block.7.layer.1.EncDecAttention.v", "int8"),
        ("decoder.block.0.layer.1.EncDecAttention.q", "w8"),
        ("decoder.block.0.layer.1.EncDecAttention.o", "w8"),
        ("decoder.block.0.layer.0.SelfAttention.k", "w8"),
        ("decoder.block.0.layer.0.SelfAttention.v", "w8"),
        ("decoder.block.3.layer.2.DenseReluDense.wi_0", "w8"),
        ("lm_head", "w4"),
        ("shared", "fp32"),
    ],
)
def test_a_layer_has_the_format_of_its_kind(layer: str, storage: str) -> None:
    assert formats_of(MIXED, t5)(layer) is WEIGHT_FORMATS[storage]


def test_rows_are_independent_if_they_are_in_all_formats() -> None:
    assert {name for name, precision in NAMED.items() if precision.independent} == {"fp32", "int8"}
    for kind in KINDS:
        for storage, entry in FORMATS.items():
            assert parse(f"{kind}={storage}").independent == entry.independent
    assert not any("cuda" in entry.independent for entry in FORMATS.values())


def test_candidates_are_supported_by_the_provider() -> None:
    assert [str(precision) for precision in candidates("cuda")] == ["fp32", "fp16", "bf16"]
    assert [str(precision) for precision in candidates("cpu")] == [
        "fp32",
        "int8",
        "w8",
        "w4",
        "int8-w8",
        "int8-w4",
        "int8-w4g128",
    ]
    for provider in PROVIDERS:
        assert all(provider in precision.providers for precision in candidates(provider))


def test_a_precision_runs_on_the_providers_of_all_its_formats() -> None:
    assert NAMED["int8-w4"].providers == ("cpu",)
    assert parse("encoder=fp16").providers == ("cpu", "cuda")
    assert parse("encoder=bf16").providers == ("cuda",)
    assert parse("encoder=bf16,head=w4").providers == ()


def test_every_format_is_implemented_as_the_table_says() -> None:
    assert WEIGHT_FORMATS.keys() == FORMATS.keys()
    for name, stored in WEIGHT_FORMATS.items():
        if isinstance(stored, Blocks):
            assert (stored._bits, stored._size) == (FORMATS[name].bits, FORMATS[name].group)
    assert {name: entry.bytes for name, entry in FORMATS.items()} == {
        "fp32": 4,
        "fp16": 2,
        "bf16": 2,
        "int8": 1,
        "w8": 1,
        "w4": 0.5,
        "w4g128": 0.5,
    }


def test_the_documentation_shows_the_tables() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(markdown_tables() in page.read_text(encoding="utf-8") for page in pages)
