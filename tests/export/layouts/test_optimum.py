"""The layout `optimum` in Optimum's ORTModelForSeq2SeqLM: PyTorch's tokens in every mode that Optimum has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.oracle import make_bundle, redraw, torch_model
from tests.tiny import save_tiny_t5

optimum = pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx needs transformers below 4.58")

LOADS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "merged": {"use_merged": True},
    "split": {"use_merged": False},
    "merged, no cache": {"use_merged": True, "use_cache": False},
    "split, no cache": {"use_merged": False, "use_cache": False},
}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "least length": {"min_new_tokens": 9},
    "repetition penalty": {"repetition_penalty": 1.4},
    "n-gram bans": {"no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3},
    "beams that stop early": {"num_beams": 4, "early_stopping": True, "length_penalty": 0.6},
    "beams with bans": {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "several answers": {"num_beams": 4, "num_return_sequences": 3},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.3},
    "nucleus sampling": {"do_sample": True, "top_k": 0, "top_p": 0.8},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 10},
}


class Pair:
    """A layout in Optimum, loaded in every way, beside the checkpoint in PyTorch."""

    def __init__(self, checkpoint: Path, out: Path, **loads: dict[str, Any]) -> None:
        make_bundle(checkpoint, out, layout="optimum")
        self.folder = out
        self.torch = torch_model(checkpoint)
        self.models = {
            name: optimum.ORTModelForSeq2SeqLM.from_pretrained(out, **load) for name, load in (loads or LOADS).items()
        }

    def tokens(self, model: Any, ids: np.ndarray, mask: np.ndarray, **mode: Any) -> list[list[int]]:
        torch.manual_seed(0)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return model.generate(**inputs, **{"max_new_tokens": 12, **mode}).tolist()


def batch(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random sources of these lengths, padded on the right, and their mask."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return np.where(mask, rng.integers(3, 75, mask.shape), 0), mask


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base with d_kv (8) other than d_model / heads (10), as in FLAN-T5-small. Optimum's empty past is 10 wide."""
    folder = tmp_path_factory.mktemp("optimum")
    return Pair(redraw(save_tiny_t5(folder / "tiny"), seed=4, end=1.5), folder / "out")


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base with d_kv = d_model / heads, with Optimum's IO binding."""
    folder = tmp_path_factory.mktemp("square")
    checkpoint = redraw(save_tiny_t5(folder / "tiny", num_heads=4), seed=5, end=1.5)
    binding = {f"bound, {name}": load | {"use_io_binding": True} for name, load in LOADS.items()}
    return Pair(checkpoint, folder / "out", **LOADS, **binding)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("load", LOADS)
def test_optimum_generates_what_pytorch_does(pair: Pair, load: str, mode: str) -> None:
    ids, mask = batch([9, 3, 14, 1])
    expected = pair.tokens(pair.torch, ids, mask, **MODES[mode])
    assert pair.tokens(pair.models[load], ids, mask, **MODES[mode]) == expected


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    beams=st.integers(1, 8),
    penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    early=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_optimums_beams_are_pytorchs(
    pair: Pair, lengths: list[int], beams: int, penalty: float, early: bool, seed: int
) -> None:
    mode: dict[str, Any] = {"num_beams": beams}
    mode |= {"length_penalty": penalty, "early_stopping": early} if beams > 1 else {}
    ids, mask = batch(lengths, seed)
    expected = pair.tokens(pair.torch, ids, mask, **mode)
    for load in ("merged", "split"):
        assert pair.tokens(pair.models[load], ids, mask, **mode) == expected


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_io_binding_runs_where_optimum_knows_the_width_of_a_head(square: Pair, mode: str) -> None:
    ids, mask = batch([9, 3, 14, 1])
    expected = square.tokens(square.torch, ids, mask, **MODES[mode])
    for load, model in square.models.items():
        assert square.tokens(model, ids, mask, **MODES[mode]) == expected, load


def test_io_binding_takes_d_model_over_heads_for_the_width_of_a_head(pair: Pair, tmp_path: Path) -> None:
    """Optimum's own fault: its own export of the same checkpoint fails in the same way."""
    checkpoint = redraw(save_tiny_t5(tmp_path / "tiny"), seed=4, end=1.5)
    bound = {"use_io_binding": True, "use_merged": False}
    theirs = optimum.ORTModelForSeq2SeqLM.from_pretrained(checkpoint, export=True, **bound)
    ours = optimum.ORTModelForSeq2SeqLM.from_pretrained(pair.folder, **bound)
    for model in (theirs, ours):
        with pytest.raises(RuntimeError, match=r"present.0.decoder.key[\s\S]*Got: 10 Expected: 8"):
            pair.tokens(model, *batch([3]))


@pytest.mark.parametrize("load", LOADS)
def test_optimum_encoder_equals_that_of_pytorch(pair: Pair, load: str) -> None:
    ids, mask = map(torch.from_numpy, batch([9, 3]))
    with torch.inference_mode():
        expected = pair.torch.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    hidden = pair.models[load].encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(hidden[mask > 0], expected[mask > 0], atol=1e-4)


def test_optimums_forward_scores_as_pytorch_does(pair: Pair) -> None:
    ids, mask = map(torch.from_numpy, batch([9, 3]))
    decoded = torch.tensor([[0, 5, 7], [0, 9, 4]])
    feed = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoded}
    with torch.inference_mode():
        expected = pair.torch(**feed, use_cache=False).logits
    for load, model in pair.models.items():
        assert torch.allclose(model(**feed).logits, expected, atol=3e-4), load


def test_a_pipeline_opens_the_layout(pair: Pair) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair.folder)
    answers = [
        transformers.pipeline("text2text-generation", model=model, tokenizer=tokenizer)("abc", max_new_tokens=12)
        for model in (pair.models["as it comes"], pair.torch)
    ]
    assert answers[0] == answers[1]
