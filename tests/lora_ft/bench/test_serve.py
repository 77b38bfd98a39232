"""Servers measured under load: the whole path with a tiny bundle, and the figures of given replies."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import lora_ft.bench.serve as module
from lora_ft.bench import batch_server
from lora_ft.bench.reference import Reference
from lora_ft.bench.serve import measure
from lora_ft.bench.serve_pages import render_html, render_markdown
from lora_ft.bench.serve_report import LoadPlan, ServeReport
from lora_ft.bench.subjects import Subject
from lora_ft.core.errors import UsageError

PROMPTS = [f"say: {'word ' * (i % 5)}{i}" for i in range(9)]


class Machine:
    """A simulated load generator: all rows take equal times, 2 s up to a load, 3.5 s beyond it."""

    pid = 1

    def __init__(self, limit: float = 4.0, *, alone: float = 1.0, status: int = 200) -> None:
        self.limit, self.offered = limit, list[tuple[float, int]]()
        self._alone, self._status = alone, status
        self.stops = False
        self.late = self._reply(3.5)

    def ask(self, call: str, **fields: Any) -> dict[str, Any]:
        if call == "models":
            return {"models": ["a", "b"]}
        if call == "alone":
            return {"replies": [self._reply(self._alone, self._status) for _ in fields["numbers"]]}
        if call != "offer":
            return {}
        times = fields["times"]
        if self.stops and fields["misses"] is not None and 1 / (times[1] - times[0]) > self.limit:
            times = times[: fields["misses"] + 2]
        rate = 1 / (times[1] - times[0])
        self.offered.append((rate, len(times)))
        holds = rate <= self.limit + 1e-9
        replies = [self._reply(2.0) if holds else self.late for _ in times]
        return {"replies": replies, "seconds": times[-1], "cpu": 0.5, "engine": {}}

    @staticmethod
    def _reply(seconds: float, status: int = 200) -> tuple[Any, ...]:
        return (status, seconds / 2, seconds, seconds, 6, "text", 0.0)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Replace the load generator, arrivals and the reading of CPU time."""
    simulated = Machine()
    monkeypatch.setattr(module, "Process", lambda *_: simulated)
    monkeypatch.setattr(module, "arrivals", lambda rate, count, profile, seed: [(i + 1) / rate for i in range(count)])
    return simulated


def simulated_report(plan: LoadPlan, tmp_path: Path | None = None) -> ServeReport:
    out = tmp_path / "serve.json" if tmp_path else None
    return measure([Subject("x", "url", "http://127.0.0.1:9")], PROMPTS, plan, data="rows.jsonl", out=out)


def test_loads_grow_to_the_knee_and_bursts_follow(machine: Machine, tmp_path: Path) -> None:
    plan = LoadPlan(rows=5, start=0.5, growth=2.0, refinements=1, seconds=20.0, requests=70)
    report = simulated_report(plan, tmp_path)
    (server,) = report.servers
    assert server.models == ["a", "b"] and server.alone == [1.0] * 5
    rates = [round(rate, 3) for rate, _ in machine.offered]
    # a load that fails for all requests is hopeless, so it is not tried twice
    assert rates == [0.5, 1.0, 2.0, 4.0, 8.0, 5.657, 2.0, 3.2]
    assert [count for _, count in machine.offered] == [64, 64, 64, 70, 70, 70, 64, 64]
    assert server.knee == 4.0
    knee = server.at_knee()
    assert knee is not None and (knee.within, knee.same) == (1.0, 1.0)
    assert knee.ratio.p90 == 2.0 and knee.first_token.p50 == 1.0 and knee.token.p50 == pytest.approx(0.2)
    assert server.goodput == pytest.approx(70 / 17.5)
    assert [load.profile for load in server.loads] == ["poisson"] * 6 + ["bursts"] * 2
    assert ServeReport.read(tmp_path / "serve.json") == report


def test_a_load_that_cannot_be_held_ends_early_and_is_not_repeated(machine: Machine, tmp_path: Path) -> None:
    machine.stops = True
    plan = LoadPlan(rows=5, start=4.0, growth=2.0, refinements=0, bursts=())
    (server,) = simulated_report(plan).servers
    assert [(load.offered, load.stopped, len(load.seconds)) for load in server.loads] == [
        (4.0, False, 64),
        (8.0, True, 19 + 2),  # 19 of the 192 requests of two attempts may miss their limit
    ]
    assert server.knee == 4.0 and server.loads[1].within == 0
    (once,) = simulated_report(plan.model_copy(update={"attempts": 1})).servers
    assert len(once.loads[1].seconds) == 9 + 2


def test_given_loads_are_offered_to_their_end(machine: Machine) -> None:
    machine.stops = True
    (server,) = simulated_report(LoadPlan(rows=5, loads=(8.0,), bursts=())).servers
    assert [(load.stopped, len(load.seconds)) for load in server.loads] == [(False, 96)]


def test_servers_are_measured_at_the_same_loads(machine: Machine) -> None:
    """The first load is a power of the growth factor, whatever the time of a row alone."""
    simulated_report(LoadPlan(rows=5, start=0.53, growth=2.0, refinements=0, bursts=()))
    assert machine.offered[0][0] == pytest.approx(0.5)


def test_given_loads_replace_the_search(machine: Machine) -> None:
    report = simulated_report(LoadPlan(rows=3, loads=(6.0, 1.0, 4.0), bursts=()))
    assert [round(rate, 3) for rate, _ in machine.offered] == [1.0, 4.0, 6.0]
    assert report.servers[0].knee == 4.0


def test_a_load_that_nearly_fails_is_tried_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asks: list[float] = []

    def disturbed(seconds: float, status: int = 200) -> tuple[Any, ...]:
        asks.append(seconds)
        late = 3.5 if 17 <= len(asks) < 28 else seconds  # eleven requests of the first load; alone were 16
        return (status, late / 2, late, late, 6, "text", 0.0)

    monkeypatch.setattr(machine, "_reply", disturbed)
    report = simulated_report(LoadPlan(rows=4, loads=(1.0,), bursts=()))
    assert [load.within < 0.9 for load in report.servers[0].loads] == [True, False]
    assert report.servers[0].knee == 1.0


def test_a_server_that_refuses_rows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Process", lambda *_: Machine(status=404))
    (server,) = simulated_report(LoadPlan(rows=2)).servers
    assert server.error == "a row alone was not answered (status 404): text"
    assert server.knee is None and not server.loads


def test_the_median_of_a_row_s_times_alone_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.2, 1.0, 9.0, 1.0])
    monkeypatch.setattr(machine, "_reply", lambda alone, *_: Machine._reply(next(seconds, alone)))
    assert simulated_report(LoadPlan(rows=1, loads=(1.0,), bursts=())).servers[0].alone == [1.0]


def compared(
    machines: Sequence[Machine], plan: LoadPlan, monkeypatch: pytest.MonkeyPatch, reference: Reference | None = None
) -> ServeReport:
    """Measure several simulated servers: "a", "b", ..."""
    started = iter(machines)
    monkeypatch.setattr(module, "Process", lambda *_: next(started))
    subjects = [Subject(name, "url", "http://127.0.0.1:9") for name, _ in zip("abc", machines, strict=False)]
    return measure(subjects, PROMPTS, plan, reference=reference)


@pytest.mark.parametrize(("common", "knee"), [(False, 8.0), (True, 1.0)])
def test_a_server_that_is_slow_alone_has_no_looser_limit_if_limits_are_common(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, common: bool, knee: float
) -> None:
    plan = LoadPlan(rows=5, loads=(1.0, 8.0), bursts=(), attempts=1, common_slo=common)
    first, second = compared([Machine(), Machine(alone=2.0)], plan, monkeypatch).servers
    assert (first.knee, second.knee, second.alone) == (1.0, knee, [2.0] * 5)
    assert second.limits_from == ("a" if common else "b") and first.limits_from == "a"


def test_limits_are_those_of_the_first_server_that_answers(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LoadPlan(rows=5, loads=(8.0,), bursts=(), attempts=1, common_slo=True)
    machines = [Machine(status=404), Machine(), Machine(alone=2.0)]
    assert [server.limits_from for server in compared(machines, plan, monkeypatch).servers] == ["a", "b", "b"]


def test_every_server_is_measured_at_the_first_one_s_knee(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [Machine(4.0), Machine(1.0), Machine(8.0)]
    for each in machines:
        each.stops = True
    plan = LoadPlan(rows=5, start=0.5, growth=2.0, refinements=0, bursts=(), requests=70)
    servers = compared(machines, plan, monkeypatch).servers
    assert [server.knee for server in servers] == [4.0, 1.0, 8.0]
    loads = [server.at_reference() for server in servers]
    assert [(load.offered, load.stopped, len(load.seconds)) for load in loads if load] == [(4.0, False, 64)] * 3
    rates = [[round(rate) for rate, _ in each.offered[1:]] for each in machines]
    assert rates == [[1, 2, 4, 8], [1, 2, 4], [1, 2, 4, 8, 16]]  # once each, also beyond the knee


def test_a_study_can_name_the_reference(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LoadPlan(rows=5, loads=(1.0,), bursts=(), attempts=1, common_slo=True)
    (server,) = compared([Machine()], plan, monkeypatch, Reference("other", (0.5,) * 5, 3.0)).servers
    reference = server.at_reference()
    assert server.limits_from == "other" and server.knee is None  # 2 s are four times 0.5 s
    assert reference is not None and reference.offered == 3.0


def test_timeouts_at_the_reference_load_are_a_warning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = LoadPlan(rows=5, start=0.5, growth=2.0, refinements=0, bursts=(), limit=3.0)
    slow = Machine(1.0)
    slow.late = Machine._reply(3.0, 0)
    report = compared([Machine(4.0), slow], plan, monkeypatch)
    reference = report.servers[1].at_reference()
    assert reference is not None and reference.timeouts == 64 and reference.first_token.samples == 0
    assert (
        "b: 64 of 64 requests failed at the reference load, 64 of them by a timeout; times are those of the others"
        in report.warnings
    )


def test_an_interrupted_benchmark_keeps_what_it_measured(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = machine.ask

    def interrupted(call: str, **fields: Any) -> dict[str, Any]:
        if len(machine.offered) == 2:
            raise KeyboardInterrupt
        return ask(call, **fields)

    monkeypatch.setattr(machine, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulated_report(LoadPlan(rows=2), tmp_path)
    report = ServeReport.read(tmp_path / "serve.json")
    assert report.interrupted and len(report.servers[0].loads) == 2


def test_failed_requests_count_against_the_goodput(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asks: list[int] = []

    def refused(seconds: float, status: int = 200) -> tuple[Any, ...]:
        asks.append(status)
        return Machine._reply(seconds, 429 if len(asks) > 16 and len(asks) % 4 == 0 else 200)

    monkeypatch.setattr(machine, "_reply", refused)
    (server,) = simulated_report(LoadPlan(rows=4, loads=(1.0,), bursts=())).servers
    assert server.knee is None
    first = server.loads[0]
    assert first.failed == {429: 16} and first.within == 0.75
    assert first.seconds.count(None) == 16 and first.ratio.samples == 48


def test_there_must_be_rows() -> None:
    with pytest.raises(UsageError, match="there are no rows"):
        measure([Subject("x", "url", "http://127.0.0.1:9")], [], LoadPlan())


def test_a_tiny_bundle_is_measured_over_http_and_without(published: Path) -> None:
    python, folder = shlex.quote(sys.executable), shlex.quote(str(published))
    file = shlex.quote(str(Path(batch_server.__file__)))
    subjects = [
        Subject("serve", "command", f"{python} -m lora_ft serve {folder} --threads 1 --port {{port}}"),
        Subject("engine", "engine", str(published), threads=1),
        Subject("batches", "command", f"{python} -P {file} bank fp32 . {folder} {{port}} --threads 1", stream=False),
        Subject("broken", "command", f"{python} -c 'raise SystemExit(\"no\")' {{port}}"),
    ]
    plan = LoadPlan(rows=3, requests=64, loads=(50.0,), bursts=(), max_tokens=6, slo=1e6)
    report = measure(subjects, PROMPTS, plan, data="rows.jsonl")
    *good, broken = report.servers
    for server in good:
        assert server.error == "" and server.knee == 50.0 and len(server.alone) == 3
        (load,) = server.loads
        assert load.failed == {} and load.same == 1.0 and len(load.seconds) == 64
        assert load.tokens > 1
    texts = {tuple(server.models) for server in good}
    assert texts == {(published.name,)}
    assert len({round(server.tokens, 6) for server in good[:2]}) == 1
    assert good[1].loads[0].engine["generated_tokens"] > 64 and good[0].loads[0].engine == {}
    assert "ended with exit code 1: no" in broken.error
    for page in (render_html(report), render_markdown(report)):
        assert "broken (failed)" in page and "batches" in page
