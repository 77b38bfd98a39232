"""The reader of protobuf fields agrees with protobuf itself."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.runtime.protobuf import fields


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**63), 2**63 - 1),
    st.dictionaries(*[st.text(st.characters(exclude_categories=["Cs"]))] * 2),
)
def test_fields_equal_those_of_protobuf(name: str, version: int, properties: dict[str, str]) -> None:
    model = onnx.ModelProto(producer_name=name, model_version=version, ir_version=10)
    onnx.helper.set_model_props(model, properties)
    parsed = list(fields(model.SerializeToString()))
    assert [content.decode() for number, content in parsed if number == 2] == [name]
    entries = [onnx.StringStringEntryProto.FromString(content) for number, content in parsed if number == 14]
    assert {entry.key: entry.value for entry in entries} == properties


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    try:
        contents = list(fields(message))
    except ValueError:
        return
    assert sum(len(content) for _, content in contents) <= len(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x72\x05abc",  # longer than the message
        b"\x72\x83\x00abc",  # a length in more bytes than it needs
        b"\xf2\x00\x01a",  # a key likewise
        b"\x73\x74",  # a group
        b"\x02\x01a",  # field 0
        b"\x72",  # no length
        b"\x80" * 11,
        b"\x71\x00",  # cut
    ],
)
def test_malformed_messages_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        list(fields(message))
