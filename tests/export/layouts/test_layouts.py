"""Every layout generates what the bundle does, and has the names that its consumers look for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lora_ft.core.errors import LoraFtError
from lora_ft.core.files import sha256
from lora_ft.export import layouts
from lora_ft.export.layouts.optimum import NAMES
from lora_ft.export.layouts.single import greedy_feed
from lora_ft.export.precision import parse
from lora_ft.export.runtime.manifest import LAYOUT_RECORD
from tests.export.oracle import END, PAD, make_bundle, redraw, torch_greedy, torch_logits, torch_model
from tests.tiny import save_tiny_t5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("layouts") / "tiny"), seed=4, end=1.5)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-w4"])
def test_a_layout_passes_its_own_check(checkpoint: Path, tmp_path: Path, layout: str, precision: str) -> None:
    """Publishing runs every graph of the layout and compares it with the bundle."""
    make_bundle(checkpoint, tmp_path / "out", layout=layout, precisions=[parse(precision)])
    record = json.loads((tmp_path / "out" / LAYOUT_RECORD).read_text())
    assert (record["layout"], record["precision"]) == (layout, precision)
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == record["files"].keys() | {LAYOUT_RECORD}
    assert all(sha256(tmp_path / "out" / name) == entry["sha256"] for name, entry in record["files"].items())


@pytest.mark.parametrize("layout", ["bundle", *layouts.LAYOUTS])
@pytest.mark.parametrize("precision", ["fp32", "int8-w4"])
def test_onnx_accepts_every_graph(checkpoint: Path, tmp_path: Path, layout: str, precision: str) -> None:
    make_bundle(checkpoint, tmp_path / "out", layout=layout, precisions=[parse(precision)])
    graphs = list((tmp_path / "out").rglob("*.onnx"))
    assert graphs
    for graph in graphs:
        onnx.checker.check_model(graph, full_check=True)


def test_one_call_of_plain_onnxruntime_generates(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "out", layout="single")
    session = ort.InferenceSession(tmp_path / "out" / "generate.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([[5, 9, 30, 1], [7, 1, 0, 0]])
    mask = (ids > 0).astype(np.int64)
    for least in (0, 7):
        limits = {"min_new_tokens": np.array(least), "max_new_tokens": np.array(12)}
        plain = {"temperature": np.array(0, np.float32), "top_k": np.array(0), "top_p": np.array(1, np.float32)}
        unread = {"uniform": np.empty((0, 0), np.float32)}
        (tokens,) = session.run(None, {"input_ids": ids, "attention_mask": mask, **limits, **plain, **unread})
        assert np.array_equal(tokens, torch_greedy(torch_model(checkpoint), ids, mask, 12, least))


def test_random_numbers_determine_the_sampled_answer(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "out", layout="single")
    session = ort.InferenceSession(tmp_path / "out" / "generate.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([[5, 9, 30, 1], [7, 1, 0, 0]])
    feed = greedy_feed(ids, (ids > 0).astype(np.int64), 0, 9)
    feed |= {"temperature": np.array(1.5, np.float32), "top_k": np.array(50)}
    rng = np.random.default_rng(0)
    draws = [feed | {"uniform": rng.random((2, 9), np.float32)} for _ in range(3)]
    (first,), (again,), *later_runs = (session.run(None, draw) for draw in (draws[0], draws[0], *draws[1:]))
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, tokens) for (tokens,) in later_runs)
    shifted = np.concatenate([np.full((2, 1), PAD), first[:, :-1]], axis=1)
    logits = torch_logits(torch_model(checkpoint), ids, feed["attention_mask"], shifted) / 1.5
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :50]
    shares = np.exp(np.take_along_axis(logits, order, axis=-1))
    reached = np.cumsum(shares, -1) / shares.sum(-1, keepdims=True)
    place = (reached <= draws[0]["uniform"][:, : first.shape[1], None]).sum(-1)
    expected = np.take_along_axis(order, place[..., None], axis=-1)[..., 0]
    before_end = np.cumsum(first == END, axis=1) - (first == END) == 0
    assert np.array_equal(first[before_end], expected[before_end])


@pytest.mark.parametrize(
    "rows, columns, expected",
    [
        (2, 8, "uniform_needs_max_new_tokens_columns"),
        (1, 9, "uniform_needs_a_row_for_each_row_of_input_ids"),
        (0, 0, "uniform_needs_a_row_for_each_row_of_input_ids"),
    ],
)
def test_too_few_random_numbers_fail_by_name(
    checkpoint: Path, tmp_path: Path, rows: int, columns: int, expected: str
) -> None:
    make_bundle(checkpoint, tmp_path / "out", layout="single")
    session = ort.InferenceSession(tmp_path / "out" / "generate.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([[5, 9, 30, 1], [7, 1, 0, 0]])
    feed = greedy_feed(ids, (ids > 0).astype(np.int64), 0, 9) | {"uniform": np.zeros((rows, columns), np.float32)}
    assert session.run(None, feed)[0].shape[0] == 2  # they are not read
    with pytest.raises(Exception, match=expected):
        session.run(None, feed | {"temperature": np.array(1, np.float32)})


def test_optimums_names_and_axes(checkpoint: Path, tmp_path: Path) -> None:
    """The names equal those of Optimum's own export of a T5."""
    make_bundle(checkpoint, tmp_path / "out", layout="optimum")
    opened = {
        name: ort.InferenceSession(tmp_path / "out" / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in NAMES
    }
    takes = {name: {entry.name for entry in session.get_inputs()} for name, session in opened.items()}
    gives = {name: {entry.name for entry in session.get_outputs()} for name, session in opened.items()}
    sides = {
        side: {f"{i}.{side}.{kind}" for i in range(2) for kind in ("key", "value")} for side in ("decoder", "encoder")
    }
    past = {f"past_key_values.{name}" for name in sides["decoder"] | sides["encoder"]}
    present = {f"present.{name}" for name in sides["decoder"] | sides["encoder"]}
    first = {"input_ids", "encoder_attention_mask", "encoder_hidden_states"}
    assert takes["encoder_model"] == {"input_ids", "attention_mask"} and gives["encoder_model"] == {"last_hidden_state"}
    assert takes["decoder_model"] == first and gives["decoder_model"] == {"logits"} | present
    assert takes["decoder_with_past_model"] == past | {"input_ids", "encoder_attention_mask"}
    assert gives["decoder_with_past_model"] == {"logits"} | {f"present.{name}" for name in sides["decoder"]}
    assert takes["decoder_model_merged"] == first | past | {"use_cache_branch"}
    assert gives["decoder_model_merged"] == {"logits"} | present
    # Optimum pairs its tuples (own key, own value, cross key, cross value; a layer each) with these by their order
    order = [f"{i}.{side}.{kind}" for i in range(2) for side in ("decoder", "encoder") for kind in ("key", "value")]
    for name, session in opened.items():
        caches = [entry.name for entry in session.get_inputs() if entry.name.startswith("past_key_values.")]
        assert caches == [f"past_key_values.{entry}" for entry in order] * ("past" in name or "merged" in name)
        outputs = [entry.name for entry in session.get_outputs() if entry.name.startswith("present.")]
        assert outputs == [f"present.{entry}" for entry in order if f"present.{entry}" in gives[name]]
    # the empty past of Optimum is as wide as d_model / heads, whatever d_kv is
    merged = {entry.name: entry.shape for entry in opened["decoder_model_merged"].get_inputs()}
    assert all(isinstance(merged[name][3], str) for name in past)


def test_a_layout_that_differs_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, _ = layouts.LAYOUTS["single"]
    wrong = lambda folder, ids, mask, limit: np.full((len(ids), limit), 7)  # noqa: E731
    wrong.__name__ = "wrong"
    monkeypatch.setitem(layouts.LAYOUTS, "single", (write, (wrong,)))
    with pytest.raises(LoraFtError, match=r"the layout single .*differs from the bundle"):
        make_bundle(checkpoint, tmp_path / "out", layout="single")
    assert list(tmp_path.iterdir()) == []
