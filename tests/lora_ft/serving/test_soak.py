"""A short soak; `python -m tests.soak` runs a long one."""

from __future__ import annotations

import pytest

from tests.soak import soak


@pytest.mark.slow
def test_no_answer_is_wrong_or_lost_while_clients_and_adapters_come_and_go() -> None:
    assert soak(500) == []
