"""A config.json is read like in transformers, and unsupported settings are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from lora_ft.core.errors import UsageError
from lora_ft.core.special_tokens import SpecialTokens
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.families import MODEL_TYPES
from tests.tiny import CONFIG

FOLDER = Path("some", "folder")
SIZES = ("num_layers", "num_heads", "d_kv", "d_ff", "d_model", "vocab_size")
BARE = {"model_type": "t5"} | {size: CONFIG[size] for size in SIZES}


def read(**changes: Any) -> Architecture:
    """Return the architecture of a minimal config with changes."""
    return Architecture.read(BARE | changes, FOLDER)


def test_sizes_are_those_of_the_config() -> None:
    changes = {
        "num_layers": 5,
        "num_decoder_layers": 7,
        "num_heads": 3,
        "d_kv": 8,
        "d_ff": 48,
        "d_model": 32,
        "vocab_size": 80,
        "layer_norm_epsilon": 1e-3,
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 15,
        "tie_word_embeddings": False,
        "feed_forward_proj": "gated-gelu",
    }
    assert read(**changes) == Architecture(
        kind="t5",
        layers=5,
        decoder_layers=7,
        heads=3,
        d_kv=8,
        d_ff=48,
        d_model=32,
        vocabulary=80,
        gated=True,
        activation="gelu_new",
        epsilon=1e-3,
        buckets=12,
        max_distance=15,
        bias_per_layer=False,
        output_scale=1.0,
        special=SpecialTokens(start=0, ends=(1,), pad=0),
    )


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_omitted_settings_have_the_defaults_of_transformers(kind: str) -> None:
    config = AutoConfig.for_model(**BARE | {"model_type": kind})
    architecture = read(model_type=kind)
    assert (architecture.gated, architecture.activation) == (config.is_gated_act, config.dense_act_fn)
    assert architecture.decoder_layers == config.num_decoder_layers
    assert architecture.epsilon == config.layer_norm_epsilon
    assert architecture.buckets == config.relative_attention_num_buckets
    assert architecture.max_distance == config.relative_attention_max_distance


@pytest.mark.parametrize("kind", MODEL_TYPES)
@pytest.mark.parametrize("forward", ["relu", "gated-relu", "gated-gelu", "gated-silu"])
def test_a_config_saved_by_transformers_is_read_back(kind: str, forward: str) -> None:
    changes = {"model_type": kind, "feed_forward_proj": forward, "tie_word_embeddings": True}
    config = AutoConfig.for_model(**CONFIG | changes)
    architecture = Architecture.read(config.to_dict(), FOLDER)
    assert (architecture.gated, architecture.activation) == (config.is_gated_act, config.dense_act_fn)
    assert replace(architecture, output_scale=0.0) == replace(
        Architecture.read(CONFIG | changes, FOLDER), output_scale=0.0
    )


@pytest.mark.parametrize("value", [None, 0])
def test_decoder_depth_defaults_to_encoder_depth(value: int | None) -> None:
    assert read(num_layers=3, num_decoder_layers=value).decoder_layers == 3


def test_head_width_may_differ_from_d_model() -> None:
    assert read(num_heads=6, d_kv=64, d_model=512).width == 384


def test_only_umt5_has_a_bias_in_every_layer() -> None:
    assert {kind: read(model_type=kind).bias_per_layer for kind in MODEL_TYPES} == {
        "t5": False,
        "mt5": False,
        "umt5": True,
    }


@pytest.mark.parametrize(
    ("scaled", "config"),
    [
        (True, {"model_type": "t5"}),
        (True, {"model_type": "t5", "tie_word_embeddings": True}),
        (False, {"model_type": "t5", "tie_word_embeddings": False}),
        # transformers 5 says that every head is tied
        (False, {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False}),
        (True, {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": True}),
        (False, {"model_type": "mt5"}),
        (False, {"model_type": "mt5", "tie_word_embeddings": False}),
        (True, {"model_type": "mt5", "tie_word_embeddings": True}),
        (True, {"model_type": "mt5", "tie_word_embeddings": True, "transformers_version": "4.57.6"}),
        (False, {"model_type": "mt5", "tie_word_embeddings": True, "transformers_version": "5.23.0"}),
        (True, {"model_type": "umt5"}),
        (True, {"model_type": "umt5", "tie_word_embeddings": True, "transformers_version": "4.57.6"}),
        (True, {"model_type": "umt5", "tie_word_embeddings": True, "transformers_version": "5.23.0"}),
    ],
    ids=str,
)
def test_head_scaling_follows_the_version_that_saved_the_config(scaled: bool, config: dict[str, Any]) -> None:
    assert read(d_model=16, **config).output_scale == (0.25 if scaled else 1.0)


@pytest.mark.parametrize("kind", ["bart", "longt5", "switch_transformers", "T5", "", None, 5])
def test_other_models_are_refused(kind: Any) -> None:
    with pytest.raises(
        UsageError, match=f"{FOLDER}: the model type '{kind}' is not supported .*umt5.*FLAN-T5"
    ) as caught:
        read(model_type=kind)
    assert caught.value.exit_code == 2


def test_a_config_without_a_model_type_is_refused() -> None:
    with pytest.raises(UsageError, match="the model type 'None' is not supported"):
        Architecture.read(dict.fromkeys(SIZES, 1), FOLDER)


@pytest.mark.parametrize("forward", ["gelu", "silu", "gated-tanh", "gated-gelu_new", "gated", "", None])
def test_other_feed_forward_layers_are_refused(forward: str | None) -> None:
    with pytest.raises(UsageError, match=f"{FOLDER}: feed_forward_proj '{forward}' is not.*gated-silu") as caught:
        read(feed_forward_proj=forward)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("size", SIZES)
def test_missing_size_is_named(size: str) -> None:
    with pytest.raises(UsageError, match=rf"config\.json is missing {size}; copy it again$") as caught:
        read(**{size: None})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", ["8", 8.0, True, -1, 0, 10**9, [8]])
def test_an_invalid_size_is_refused_with_its_value(size: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        read(**{size: value})
    assert f"config.json: {size} is out of range (got {value!r}, expected 1 to " in caught.value.message


@pytest.mark.parametrize("value", ["1e-6", -1e-6, 1, True, float("nan"), [1e-6]])
def test_an_invalid_epsilon_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="layer_norm_epsilon is out of range"):
        read(layer_norm_epsilon=value)


def test_all_missing_sizes_are_named() -> None:
    with pytest.raises(UsageError, match=", ".join(SIZES)):
        Architecture.read({"model_type": "t5"}, FOLDER)
