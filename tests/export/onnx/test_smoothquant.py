"""Folding outliers into weights keeps the function and lets 8 bits represent it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.reader import Checkpoint
from lora_ft.export.families import t5
from lora_ft.export.onnx.quantization import formats_of
from lora_ft.export.onnx.smoothquant import Calibration, Folded, Sample, calibrate
from lora_ft.export.precision import NAMED
from tests.export.family import CONFIGS, Graphs, assert_close, inputs, save_member
from tests.export.oracle import PAD, torch_model
from tests.tiny import CONFIG


def samples(count: int = 24, seed: int = 0) -> list[Sample]:
    """Return rows of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 25, (count, 2))
    draw = lambda length: rng.integers(2, CONFIG["vocab_size"], length)  # noqa: E731
    return [Sample(draw(s), np.array([PAD, *draw(t)])) for s, t in lengths]


@dataclass
class Member:
    """A checkpoint, its calibration, and its weights folded for int8."""

    folder: Path
    architecture: Architecture
    weights: Checkpoint
    calibration: Calibration
    folded: Folded

    @classmethod
    def of(cls, folder: Path) -> Member:
        architecture, weights = read_model(folder)
        calibration = calibrate(architecture, weights, samples(), lambda layer: True)
        return cls(
            folder,
            architecture,
            weights,
            calibration,
            Folded(architecture, weights, calibration, formats_of(NAMED["int8"], t5)),
        )

    @property
    def peaks(self) -> dict[str, np.ndarray]:
        return self.calibration.peaks

    def fold(self, precision: str) -> Folded:
        """Return the weights folded for another precision."""
        return Folded(self.architecture, self.weights, self.calibration, formats_of(NAMED[precision], t5))


@pytest.fixture(scope="module", params=CONFIGS)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    return Member.of(save_member(tmp_path_factory.mktemp("smooth"), request.param))


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Member:
    return Member.of(save_member(tmp_path_factory.mktemp("flan"), "t5 1.1 and flan"))


def torch_inputs(folder: Path, scale: float) -> dict[str, np.ndarray]:
    """Return the inputs [rows, in] of transformers' linear layers, unscaled for the head."""
    model, inputs = torch_model(folder), defaultdict[str, list[np.ndarray]](list)

    def watch(name: str) -> None:
        def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            inputs[name].append(arguments[0][0].numpy() / (scale if name == "lm_head" else 1))

        model.get_submodule(name).register_forward_pre_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            watch(name)
    with torch.inference_mode():
        for sample in samples():
            model(input_ids=torch.tensor(sample.source[None]), decoder_input_ids=torch.tensor(sample.decoder[None]))
    return {name: np.concatenate(rows) for name, rows in inputs.items()}


def test_peaks_equal_those_of_transformers(member: Member) -> None:
    inputs = torch_inputs(member.folder, member.architecture.output_scale)
    expected = {layer: np.abs(rows).max(axis=0) for layer, rows in inputs.items()}
    assert member.peaks.keys() == expected.keys()
    for layer, peak in expected.items():
        np.testing.assert_allclose(member.peaks[layer], peak, rtol=1e-4, atol=1e-5, err_msg=layer)


def test_peaks_are_the_maximum_over_rows(flan: Member) -> None:
    alone = [calibrate(flan.architecture, flan.weights, [sample]) for sample in samples()]
    for layer, peak in flan.peaks.items():
        assert np.array_equal(peak, np.max([row.peaks[layer] for row in alone], axis=0))


def test_calibration_rows_are_processed_one_by_one(flan: Member) -> None:
    calibration = calibrate(flan.architecture, flan.weights, iter(samples()))
    assert all(np.array_equal(calibration.peaks[layer], peak) for layer, peak in flan.peaks.items())


def test_moments_equal_those_of_transformers(member: Member) -> None:
    inputs = torch_inputs(member.folder, member.architecture.output_scale)
    expected = {layer: rows.T @ rows for layer, rows in inputs.items()}
    assert member.calibration.moments.keys() == expected.keys()
    for layer, moments in expected.items():
        actual = member.calibration.moments[layer]
        np.testing.assert_allclose(actual, moments, rtol=1e-3, atol=1e-4 * np.abs(moments).max(), err_msg=layer)


def test_only_requested_moments_are_collected(flan: Member) -> None:
    layers = {"lm_head", "decoder.block.0.layer.2.DenseReluDense.wo"}
    calibration = calibrate(flan.architecture, flan.weights, samples(), layers.__contains__)
    assert calibration.moments.keys() == layers
    assert not calibrate(flan.architecture, flan.weights, samples()).moments


def test_moments_are_rescaled_by_folding(member: Member) -> None:
    anew = calibrate(member.architecture, member.folded, samples(), lambda layer: True).moments
    for layer, moments in anew.items():
        actual = member.folded.moments(layer)
        np.testing.assert_allclose(actual, moments, rtol=1e-2, atol=1e-3 * np.abs(moments).max(), err_msg=layer)


@pytest.mark.parametrize("precision", ["int8", "w4", "int8-w8"])
def test_folding_does_not_change_the_function(member: Member, precision: str) -> None:
    batch = inputs(4, 20, 20, seed=8)
    expected = Graphs(member.architecture, member.weights).forced(*batch)
    assert_close(Graphs(member.architecture, member.fold(precision)).forced(*batch), expected)


def test_each_layer_is_folded_for_its_own_format(flan: Member) -> None:
    """In int8-w4 the encoder is folded like in int8, and the decoder like in w4."""
    mixed, like_int8, like_w4 = (flan.fold(precision) for precision in ("int8-w4", "int8", "w4"))
    for layer in flan.peaks:
        once = layer.startswith("encoder.") or layer.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        like, unlike = (like_int8, like_w4) if once else (like_w4, like_int8)
        columns = [
            np.linalg.norm(folded[f"{layer}.weight"] / flan.weights[f"{layer}.weight"], axis=0)
            for folded in (mixed, like, unlike)
        ]
        if not layer.endswith("EncDecAttention.v"):  # whose rows are folded into o, of the decoder
            np.testing.assert_allclose(columns[0], columns[1], rtol=1e-4, err_msg=layer)
        assert not np.allclose(columns[0], columns[2], rtol=1e-2), layer


def test_every_linear_layer_is_folded(member: Member) -> None:
    """No other weights change except the producers of their inputs."""
    for layer in member.peaks:
        name = "shared" if layer == "lm_head" and tied(member) else layer
        assert not np.allclose(member.folded[f"{layer}.weight"], member.weights[f"{name}.weight"], rtol=0.01)
        assert (member.folded.peak(layer) == 0) == layer.endswith(("wo", "lm_head"))  # those are scaled by row
    names = [name for name in load_file(member.folder / "model.safetensors") if "bias" in name or "shared" in name]
    assert len(names) > 2
    assert all(np.array_equal(member.folded[name], member.weights[name]) for name in names)


def test_folded_inputs_have_the_reported_peaks(member: Member) -> None:
    """No calibration row exceeds the peak by which activations are rounded."""
    for layer, peak in calibrate(member.architecture, member.folded, samples()).peaks.items():
        actual = member.folded.peak(layer)
        assert actual in (0, pytest.approx(peak.max(), rel=1e-3)), layer


def test_shapes_stay_the_same(member: Member) -> None:
    for name in load_file(member.folder / "model.safetensors"):
        assert name in member.folded
        assert member.folded.shape(name) == member.folded[name].shape == member.weights.shape(name)
        assert member.folded[name].dtype == np.float32


def tied(member: Member) -> bool:
    return "lm_head.weight" not in member.weights


@pytest.mark.parametrize("name", ["t5 1.0", "umt5", "tied mt5", "tied gated-gelu"])
def test_a_tied_head_is_folded_and_the_embedding_is_not(tmp_path: Path, name: str) -> None:
    member = Member.of(save_member(tmp_path, name))
    assert tied(member)
    assert "lm_head.weight" in member.folded
    factors = member.folded["lm_head.weight"] / member.weights["shared.weight"]
    assert np.allclose(factors, factors[0], rtol=1e-4)
    assert factors[0].std() > 0.01
    assert np.array_equal(member.folded["shared.weight"], member.weights["shared.weight"])


@pytest.mark.parametrize("name", ["t5 1.0", "untied relu"])
def test_factors_pass_through_a_relu(tmp_path: Path, name: str) -> None:
    member = Member.of(save_member(tmp_path, name))
    layer = "encoder.block.0.layer.1.DenseReluDense"
    factors = (member.folded[f"{layer}.wo.weight"] / member.weights[f"{layer}.wo.weight"])[0]
    assert (factors > 0).all() and factors.std() > 0.01
    inner = member.folded[f"{layer}.wi.weight"] / member.weights[f"{layer}.wi.weight"] * factors[:, None]
    assert np.allclose(inner, inner[0], rtol=1e-3)  # what is left is of the norm before it


def test_zero_channels_are_folded_safely(tmp_path: Path) -> None:
    """Cover a channel without input, and a channel with zero weights."""
    folder = save_member(tmp_path, "t5 1.0")
    values = load_file(folder / "model.safetensors")
    values["encoder.block.0.layer.1.layer_norm.weight"][3] = 0
    values["encoder.block.0.layer.1.DenseReluDense.wi.weight"][:, 5] = 0
    values["encoder.block.0.layer.1.DenseReluDense.wi.weight"][7] = 0
    values["decoder.block.1.layer.0.SelfAttention.v.weight"][2] = 0
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    member, batch = Member.of(folder), inputs(4, 20, 20, seed=8)
    assert all(np.isfinite(member.folded[name]).all() for name in values)
    expected = Graphs(member.architecture, member.weights).forced(*batch)
    assert_close(Graphs(member.architecture, member.folded).forced(*batch), expected)


def plant(folder: Path, factor: float) -> Path:
    """Outliers as real T5s have them: a channel of each norm is large, and its weights are small.

    The function stays the same.
    """
    values = load_file(folder / "model.safetensors")
    norms = sorted(name for name in values if "layer_norm" in name)
    for i, norm in enumerate(norms):
        if norm.endswith("final_layer_norm.weight"):
            readers = [
                name for name in values if name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight"))
            ]
            readers = readers if norm.startswith("encoder") else ["lm_head.weight"]
        else:
            layer = norm.removesuffix("layer_norm.weight")
            kinds = (f"{layer}SelfAttention.{kind}.weight" for kind in "qkv")
            kinds = (*kinds, f"{layer}EncDecAttention.q.weight")
            readers = [name for name in values if name in kinds or name.startswith(f"{layer}DenseReluDense.wi")]
        assert readers
        channel = 5 * i % len(values[norm])
        values[norm][channel] *= factor
        for reader in readers:
            values[reader][:, channel] /= factor
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loss(member: Member, precision: str, *, folded: bool = True) -> float:
    """Return the distance of the logits from those of fp32, relative to their magnitude."""
    batch = inputs(4, 20, 20, seed=8)
    exact = Graphs(member.architecture, member.weights).forced(*batch)
    weights = member.fold(precision) if folded else member.weights
    rounded = Graphs(member.architecture, weights, NAMED[precision]).forced(*batch)
    return float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("name", ["t5 1.1 and flan", "untied relu", "mt5", "gated-silu"])
def test_folding_reduces_the_loss_of_int8_with_outliers(tmp_path: Path, name: str) -> None:
    even = Member.of(save_member(tmp_path / "even", name))
    outliers = Member.of(plant(save_member(tmp_path / "outliers", name), 300))
    batch = inputs(4, 20, 20, seed=8)
    assert_close(Graphs.of(outliers.folder).forced(*batch), Graphs.of(even.folder).forced(*batch), 1e-3)
    for precision in ("int8", "w8", "int8-w8"):
        assert loss(even, precision, folded=False) < 0.2
        assert loss(outliers, precision, folded=False) > 0.7
        assert loss(outliers, precision) < 0.2
        assert loss(outliers, precision) == pytest.approx(loss(even, precision), rel=0.1)


@pytest.mark.parametrize(
    ("precision", "most"), [("int8", 0.2), ("w8", 0.15), ("int8-w8", 0.2), ("w4", 0.8), ("fp16", 0.01)]
)
def test_a_rounded_model_is_close_to_its_original(member: Member, precision: str, most: float) -> None:
    assert 0 < loss(member, precision) < most


def test_sums_beyond_sixteen_bits_do_not_overflow(tmp_path: Path) -> None:
    """Plain fp16 overflows in the residual and in the feed-forward (huggingface/transformers#20287)."""
    folder = save_member(tmp_path / "flan", "t5 1.1 and flan")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 3e5 * value if "DenseReluDense.wo" in name else value for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    plain = torch_model(folder).half()
    with torch.inference_mode():
        ids, mask, decoder = map(torch.from_numpy, inputs(4, 20, 20, seed=8))
        logits = plain(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder).logits
    assert not logits.isfinite().all()
    assert loss(Member.of(folder), "fp16") < 0.01


@pytest.mark.parametrize("precision", [name for name in NAMED if name not in ("fp32", "bf16")])
def test_a_row_of_a_rounded_model_does_not_depend_on_its_batch(flan: Member, precision: str) -> None:
    graphs = Graphs(flan.architecture, flan.fold(precision), NAMED[precision])
    batch, neighbors = inputs(6, 20, 12, seed=8), inputs(6, 20, 12, seed=9)
    for array, changed in zip(batch, neighbors, strict=True):
        changed[[1, 4]] = array[[1, 4]]
    a, b = graphs.forced(*batch), graphs.forced(*neighbors)
    assert np.array_equal(a[[1, 4]], b[[1, 4]])
    assert not np.array_equal(a[0], b[0])


@pytest.mark.parametrize("name", ["untied relu", "t5 1.1 and flan"])
def test_unused_channels_keep_their_weights(tmp_path: Path, name: str) -> None:
    member = Member.of(save_member(tmp_path, name))
    layer = "encoder.block.0.layer.1.DenseReluDense.wo"
    member.peaks[layer][3] = 0
    folded = Folded(member.architecture, member.weights, member.calibration, formats_of(NAMED["int8"], t5))
    factors = (folded[f"{layer}.weight"] / member.weights[f"{layer}.weight"])[0]
    assert factors[3] > np.median(factors) / 10
