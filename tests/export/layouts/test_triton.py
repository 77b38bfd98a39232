"""A Triton repository: a batch of several callers' requests, each answered as alone, and a config that Triton reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.layouts.single import greedy_feed
from lora_ft.export.layouts.single import write as write_single
from lora_ft.export.layouts.triton import rows_feed, write_triton
from lora_ft.export.onnx.t5 import T5
from lora_ft.export.runtime.session import open_session
from tests.export.oracle import END, PAD, entries, make_bundle, redraw, torch_greedy, torch_model
from tests.tiny import save_tiny_t5

WIDTH = 14
OPTIONS = [
    {"temperature": 0.0, "max_new_tokens": 12},
    {"temperature": 0.0, "max_new_tokens": 3},
    {"temperature": 0.0, "max_new_tokens": 20, "min_new_tokens": 17},  # longer than the numbers, which it does not read
    {"temperature": 1.5, "max_new_tokens": 14, "min_new_tokens": 9},
    {"temperature": 0.7, "max_new_tokens": 9, "top_k": 5},
    {"temperature": 2.0, "max_new_tokens": 14, "top_k": 1000, "top_p": 0.8},
    {"temperature": 1.0, "max_new_tokens": 1},
    {"temperature": 0.0, "max_new_tokens": 0},
    {"temperature": 1.2, "max_new_tokens": 13, "top_p": 0.3},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("triton") / "tiny"), seed=4, end=1.5)


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    folder = tmp_path_factory.mktemp("repository")
    return open_session(write_triton(folder, "titles", T5(*read_model(checkpoint)), 12) / "1" / "model.onnx", 1)


def requests(seed: int) -> list[dict[str, np.ndarray]]:
    """One request of one row for each of OPTIONS, with the same shapes."""
    rng = np.random.default_rng(seed)
    feeds = []
    for options in OPTIONS:
        length = int(rng.integers(2, 8))
        ids = np.pad(np.append(rng.integers(3, 60, (1, length - 1)), END), (0, 8 - length))[None]
        feed = rows_feed(ids, (np.arange(8) < length).astype(np.int64)[None], 0, 0)
        feed["uniform"] = rng.random((1, WIDTH), np.float32)
        feeds.append(feed | {name: np.array([[value]], feed[name].dtype) for name, value in options.items()})
    return feeds


def joined(feeds: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join requests like Triton's batcher."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def texts(sequences: np.ndarray) -> list[list[int]]:
    """Rows without what follows their end."""
    rows = [row.tolist() for row in sequences]
    return [row[: row.index(END) + 1] if END in row else np.trim_zeros(row, "b") for row in rows]


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_batch_are_answered_as_alone(model: ort.InferenceSession, seed: int) -> None:
    feeds = requests(seed)
    alone = [text for feed in feeds for text in texts(model.run(None, feed)[0])]
    assert texts(model.run(None, joined(feeds))[0]) == alone
    order = np.random.default_rng(seed).permutation(len(feeds))
    shuffled = texts(model.run(None, joined([feeds[i] for i in order]))[0])
    assert shuffled == [alone[i] for i in order]
    assert len({len(text) for text in alone}) > 3


def test_two_requests_of_several_rows_are_joined(model: ort.InferenceSession) -> None:
    first, second = joined(requests(5)[:4]), joined(requests(6)[3:])
    both = texts(model.run(None, joined([first, second]))[0])
    assert both == texts(model.run(None, first)[0]) + texts(model.run(None, second)[0])


@pytest.mark.parametrize("seed", range(2))
def test_a_row_is_what_the_single_file_generates(
    model: ort.InferenceSession, checkpoint: Path, tmp_path: Path, seed: int
) -> None:
    write_single(tmp_path, T5(*read_model(checkpoint)))
    single = open_session(tmp_path / "generate.onnx", 1)
    feeds = requests(seed)
    batch = texts(model.run(None, joined(feeds))[0])
    whole = greedy_feed(feeds[0]["input_ids"], feeds[0]["attention_mask"], 0, 0)
    for feed, text in zip(feeds, batch, strict=True):
        scalars = {name: value.reshape(()) if whole[name].ndim == 0 else value for name, value in feed.items()}
        assert texts(single.run(None, scalars)[0]) == [text]


def test_greedy_rows_are_pytorchs_each_within_its_limits(model: ort.InferenceSession, checkpoint: Path) -> None:
    ids = np.array([[5, 9, 30, 1], [7, 1, 0, 0], [8, 8, 1, 0]])
    mask = (ids > 0).astype(np.int64)
    limits = [(0, 12), (7, 9), (3, 4)]
    feed = rows_feed(ids, mask, 0, 0)
    feed["min_new_tokens"], feed["max_new_tokens"] = (np.array(column)[:, None] for column in zip(*limits, strict=True))
    answers = texts(model.run(None, feed)[0])
    torch = torch_model(checkpoint)
    for row, (least, most) in enumerate(limits):
        place = slice(row, row + 1)
        assert [answers[row]] == texts(torch_greedy(torch, ids[place], mask[place], most, least))


def test_answers_are_padded_after_their_end(model: ort.InferenceSession) -> None:
    (sequences,) = model.run(None, joined(requests(0)))
    for row, text in zip(sequences.tolist(), texts(sequences), strict=True):
        assert set(row[len(text) :]) <= {PAD}


@pytest.mark.parametrize("columns", [0, 1, 5])
def test_a_row_with_too_few_random_numbers_is_marked_alone(model: ort.InferenceSession, columns: int) -> None:
    feeds = [feed | {"uniform": feed["uniform"][:, :columns]} for feed in requests(1)]
    (sequences,) = model.run(None, joined(feeds))
    for options, feed, row in zip(OPTIONS, feeds, sequences, strict=True):
        lacks = options["temperature"] > 0 and options["max_new_tokens"] > columns
        assert (row == -1).all() if lacks else not (row == -1).any()
        (alone,) = model.run(None, feed)
        assert (alone == -1).all() and alone.shape == (1, 1) if lacks else texts(row[None]) == texts(alone)


def config_class() -> Any:
    """The part of Triton's ModelConfig (model_config.proto) that is used here, as a class of protobuf's."""
    f = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="triton", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for number, name in enumerate(("TYPE_INVALID", "TYPE_INT64", "TYPE_FP32")):
        kinds.value.add(name=name, number=number)

    def message(name: str, /, **fields: tuple[int, int, str]) -> None:
        message_type = file.message_type.add(name=name)
        for number, (key, (label, kind, type_name)) in enumerate(fields.items(), 1):
            message_type.field.add(name=key, number=number, label=label, type=kind, type_name=type_name or None)

    optional, repeated = f.LABEL_OPTIONAL, f.LABEL_REPEATED
    text, whole = (optional, f.TYPE_STRING, ""), (optional, f.TYPE_INT64, "")
    message("Batching", max_queue_delay_microseconds=whole)
    dims = (repeated, f.TYPE_INT64, "")
    message("Tensor", name=text, data_type=(optional, f.TYPE_ENUM, ".triton.DataType"), dims=dims)
    tensors = (repeated, f.TYPE_MESSAGE, ".triton.Tensor")
    batching = (optional, f.TYPE_MESSAGE, ".triton.Batching")
    message(
        "Config",
        name=text,
        backend=text,
        max_batch_size=whole,
        dynamic_batching=batching,
        input=tensors,
        output=tensors,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.Config"))


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "Zusammenfassung für Ärzte", "要約", "a'b"])
def test_a_name_is_escaped(checkpoint: Path, tmp_path: Path, name: str) -> None:
    repository = write_triton(tmp_path, name, T5(*read_model(checkpoint)), 12)
    assert text_format.Parse((repository / "config.pbtxt").read_text(encoding="utf-8"), config_class()()).name == name


def test_the_config_says_what_the_model_takes(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "titles", layout="single", triton=True)
    repository = tmp_path / "titles" / "titles"
    assert entries(repository) == {"config.pbtxt", "README.md", "1"}
    config = text_format.Parse((repository / "config.pbtxt").read_text(encoding="utf-8"), config_class()())
    assert (config.name, config.backend) == ("titles", "onnxruntime")
    assert config.max_batch_size > 1 and config.HasField("dynamic_batching")
    session = ort.InferenceSession(repository / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    kinds = {"tensor(int64)": 1, "tensor(float)": 2}
    for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(entry.name, entry.data_type) for entry in declared] == [
            (entry.name, kinds[entry.type]) for entry in real
        ]
        for entry, tensor in zip(declared, real, strict=True):
            assert isinstance(tensor.shape[0], str)  # the rows, which Triton adds to dims
            assert list(entry.dims) == [size if isinstance(size, int) else -1 for size in tensor.shape[1:]]
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert all(f"`{entry.name}`" in readme for entry in (*config.input, *config.output))
