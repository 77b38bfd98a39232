"""Limits of time and memory for one hostile input, and the errors that may refuse it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from lora_ft.core.errors import LoraFtError

EXAMPLES = int(os.environ.get("LORA_FT_FUZZ", "40"))
SECONDS, HANG = 5, 120  # of the processor; of the clock, after which the process is ended with its traceback
MEGABYTES = 1024
LONGEST_MESSAGE = 2000  # characters; a message that repeats an input is none

# Each example is the seed of a `random.Random`: much faster than hypothesis' own, and a failure names it. A smaller
# seed is no simpler input, so nothing is shrunk.
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
seeds = st.integers(0, 2**48)

# Python's own handlers wait for a library to return. This one does not: it prints where the call is, and then the
# signal ends the process. A watching thread for each input would take longer than most inputs.
faulthandler.register(signal.SIGALRM, chain=True)


def survives(call: Callable[[], Any]) -> Any:
    """Return what `call` returns, or the LoraFtError that it raises.

    Raises:
        AssertionError: it took too long or too much memory, or its message is no message.
        Exception: whatever else it raises.
    """
    _forget_peak()
    before = _peak()
    try:
        with _limited():
            result = call()
    except LoraFtError as error:
        assert len(str(error)) <= LONGEST_MESSAGE, f"a message of {len(str(error)):,} characters: {str(error)[:200]}"
        assert error.message.strip(), "an error without a message"
        assert "please report" not in str(error), f"a damaged input is reported as a defect of lora-ft: {error}"
        result = error
    grown = _peak() - before
    assert grown < MEGABYTES, f"it took {grown:,.0f} MB"
    return result


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise AssertionError(f"it took more than {SECONDS} s of the processor")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def _forget_peak() -> None:
    """Let the peak be what is held now, where the system can: many inputs would raise it little by little."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak() -> float:
    """Return the most memory this process has held since `_forget_peak`, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
