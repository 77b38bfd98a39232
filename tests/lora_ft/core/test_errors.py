"""Messages of errors: huge values are shortened."""

from __future__ import annotations

from lora_ft.core.errors import LoraFtError, UsageError


def test_huge_value_is_cut_in_the_middle() -> None:
    error = UsageError(f"rows.csv:2: column '{'x' * 100_000}' is missing", "name another column")
    assert len(str(error)) < 1000
    assert error.message.startswith("rows.csv:2: column 'xxx") and error.message.endswith("' is missing")
    assert str(error).endswith("; name another column") and "(100,0" in str(error)


def test_ordinary_message_is_unchanged() -> None:
    assert str(LoraFtError("a is b", "do c")) == "a is b; do c"
    assert (LoraFtError("a is b").message, LoraFtError("a is b").remedy) == ("a is b", "")
