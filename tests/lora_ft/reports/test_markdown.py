"""Plain text in Markdown is escaped and stays in its cell."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.reports.markdown import escaped


@given(st.text())
def test_escaped_text_stays_in_its_cell(text: str) -> None:
    line = escaped(text)
    assert len(line.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*_`]", re.sub(r"\\[\\|*_`]", "", line))
