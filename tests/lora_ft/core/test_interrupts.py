"""Signals during training: the first is recorded, the second ends the process, and handlers are restored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ft.core.interrupts import Interrupted, Interrupts, Terminated, ended_by_signals

ROOT = Path(__file__).parents[3]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    listener = Interrupts()
    listener.take()
    yield listener
    listener.release()


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_recorded_and_the_handler_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    interrupts = Interrupts()
    interrupts.take()
    try:
        assert not interrupts.caught
        os.kill(os.getpid(), number)
        assert interrupts.caught == number
    finally:
        interrupts.release()
    assert signal.getsignal(number) is before
    interrupts.release()  # twice does no harm
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once(interrupts: Interrupts) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_kills(first: signal.Signals, number: signal.Signals) -> None:
    script = (
        "import os; from lora_ft.core.interrupts import Interrupts\n"
        f"Interrupts().take(); os.kill(os.getpid(), {first}); print('alive', flush=True)\n"
        f"os.kill(os.getpid(), {number}); print('still alive')"
    )
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (-number, "alive\n")


def test_signal_forwarded_by_torchrun_is_ignored(interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.caught == signal.SIGINT


def test_ignored_sighup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts = Interrupts()
    try:
        interrupts.take()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        interrupts.release()
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_exit_codes_are_those_of_a_shell(number: signal.Signals, code: int) -> None:
    assert Interrupted("stopped").by(number).exit_code == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_unwinds_long_work_once(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    cleaned = False
    with pytest.raises(Terminated) as caught, ended_by_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # does not cut the cleanup short
            cleaned = True
    assert cleaned and caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_ctrl_c_unwinds_background_jobs_too() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), ended_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
