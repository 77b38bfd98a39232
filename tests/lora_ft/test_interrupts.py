"""Ctrl-C while training: caught once, meant the second time, and given back."""

from __future__ import annotations

import os
import signal

import pytest

from lora_ft.interrupts import Interrupts


def test_the_first_is_caught_the_second_ends_and_then_it_is_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    interrupts.take()
    try:
        assert not interrupts.caught
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.caught
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        interrupts.release()
    assert signal.getsignal(signal.SIGINT) is before
    interrupts.release()  # twice does no harm
    assert signal.getsignal(signal.SIGINT) is before
