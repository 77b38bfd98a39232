"""Measure servers under real requests: open loop, growing load, goodput within a limit, up to the knee.

Every row is first answered alone on the idle server. Its limit under load is a multiple of that time (`slo`), or of
that on the first server. Requests then arrive at random, at a load that grows until more than 10 % of them miss their
limit. At the end, each server is measured at the first server's knee.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.bench import slo
from lora_ft.bench.arrivals import Profile, arrivals
from lora_ft.bench.completions import Reply, Request
from lora_ft.bench.reference import Reference
from lora_ft.bench.serve_report import Load, LoadPlan, ServeReport, ServerReport, Usage
from lora_ft.bench.server_process import Reading, ServerProcess, Watch
from lora_ft.bench.statistics import needed, percentiles
from lora_ft.bench.subjects import Subject, require_distinct
from lora_ft.bench.subprocesses import Process
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.interrupts import ended_by_signals
from lora_ft.core.progress import Progress, Silent
from lora_ft.doctor import environment, stolen

REPORT = "serve.json"
API_KEY = "LORA_FT_API_KEY"
_GENERATOR = Path(__file__).with_name("load_generator.py")
ALONE_TURNS = 4  # times that each row is measured alone; with two, the host's disturbances left errors of a fifth
_PATIENCE = 180.0  # seconds that a server may take to start
_STOLEN = 0.05  # share of a core that the host may withhold before the report warns
_LATE = 0.05  # seconds by which a request may be sent too late before the report warns


def measure(
    subjects: Sequence[Subject],
    prompts: Sequence[str],
    plan: LoadPlan,
    *,
    data: str = "",
    out: Path | None = None,
    progress: Progress | None = None,
    reference: Reference | None = None,
) -> ServeReport:
    """Measure servers one after another. A server that fails is reported with its error.

    Ctrl-C, SIGTERM and SIGHUP end the benchmark early: started servers end, the unfinished report is written, and
    KeyboardInterrupt or Terminated is raised.

    Args:
        subjects: Servers; at least one.
        prompts: Finished prompts, of which the plan's number is drawn.
        plan: Settings of the load.
        data: Name of the file with the rows, for the report.
        out: File of the report, written after each server. Default: none.
        progress: Receives stages and notes.
        reference: Server that the others are compared with. Default: the first of `subjects` that answers.

    Raises:
        UsageError: There are no servers or prompts, two have the same name, or a command cannot be started.
    """
    if not prompts:
        raise UsageError("there are no rows", "pass a file with rows")
    require_distinct(subjects)
    progress = progress or Silent()
    rows = [prompts[i] for i in drawn_rows(len(prompts), plan)]
    began, clock, before = datetime.now(UTC), time.monotonic(), stolen()
    reports: list[ServerReport] = []
    interrupted = True

    def report() -> ServeReport:
        seconds = time.monotonic() - clock
        return ServeReport(
            plan=plan,
            data=data,
            environment=environment(),
            began=began.isoformat(timespec="seconds"),
            seconds=seconds,
            interrupted=interrupted,
            servers=reports,
            warnings=_warnings(reports, (stolen() - before) / seconds),
        )

    with ended_by_signals():
        try:
            for subject in subjects:
                with contextlib.ExitStack() as running:
                    measurement = _Measurement(subject, rows, plan, progress, reference)
                    try:
                        measurement.start(running)
                        measurement.run()
                    except LoraFtError as error:
                        if isinstance(error, UsageError):
                            raise
                        measurement.error = str(error)
                        progress.note(f"left out: {subject.name}: {error}")
                    finally:
                        reports.append(measurement.report())
                if reference is None and reports[-1].alone:
                    reference = Reference(subject.name, tuple(reports[-1].alone), reports[-1].knee)
                if out is not None:
                    report().write(out)
            interrupted = False
        finally:
            final = report()
            if out is not None and any(server.loads for server in reports):
                final.write(out)
    return final


def drawn_rows(count: int, plan: LoadPlan) -> list[int]:
    """Return the indices of the rows that are sent, out of `count`."""
    return np.random.default_rng(plan.seed).permutation(count)[: plan.rows].tolist()


class _Measurement:
    """One server: its process, the load generator, and the loads so far."""

    def __init__(
        self, subject: Subject, rows: Sequence[str], plan: LoadPlan, progress: Progress, reference: Reference | None
    ) -> None:
        self._subject, self._rows, self._plan, self._progress = subject, rows, plan, progress
        self._reference = reference
        self._models: list[str] = []
        self._alone: list[float] = []
        self._texts: list[str] = []
        self._tokens = 0.0
        self._loads: list[Load] = []
        self._knee: float | None = None
        self.error = ""

    def start(self, running: contextlib.ExitStack) -> None:
        """Start the server and the load generator, and send the requests to the latter."""
        subject = self._subject
        self._progress.stage(f"starting {subject.name}")
        server = running.enter_context(ServerProcess(subject.source)) if subject.kind == "command" else None
        command = [sys.executable, "-P", str(_GENERATOR)]
        self._generator = running.enter_context(Process("the load generator", command, {}))
        self._pid = server.pid if server else self._generator.pid if subject.kind == "engine" else None
        limit = self._plan.limit
        try:
            if subject.kind == "engine":
                folder = str(Path(subject.source).resolve())
                self._generator.ask("engine", folder=folder, threads=subject.threads, max_rows=None, limit=limit)
            else:
                url, key = server.url if server else subject.source, os.environ.get(API_KEY, "")
                self._generator.ask("server", url=url, key=key, stream=subject.stream, limit=limit)
            patience = _PATIENCE if server else 0.0
            models = self._generator.ask("models", patience=patience)["models"] if not subject.models else None
            self._models = list(models or subject.models)
            requests = [
                Request(self._models[i % len(self._models)], row, self._plan.max_tokens)
                for i, row in enumerate(self._rows)
            ]
            fields = [[request.model, request.prompt, request.max_tokens] for request in requests]
            self._generator.ask("prepare", requests=fields, patience=patience)
        except LoraFtError:
            if server is not None:
                server.require_alive()  # its own message says more
            raise

    def run(self) -> None:
        """Measure the rows alone, then loads up to the knee, then bursts, then the reference load."""
        self._measure_alone()
        plan = self._plan
        if plan.loads:
            self._knee = max((load for load in sorted(plan.loads) if self._holds(load)), default=None)
        else:
            start = slo.on_grid(plan.start / float(np.mean(self._alone)), plan.growth)
            self._knee = slo.find_knee(self._holds, start, plan.growth, plan.refinements)
        if self._knee is not None:
            for share in plan.bursts:
                self._loads.append(self._offer(share * self._knee, "bursts", 1))
        self._measure_reference()

    def _measure_reference(self) -> None:
        """Mark the load at the first server's knee, and offer it unless it was offered to its end.

        It may be far beyond this server's knee. It ends nevertheless: the number of requests and the time of each are
        limited.
        """
        rate = self._reference.knee if self._reference else self._knee
        if rate is None:
            return
        for number, load in reversed(list(enumerate(self._loads))):
            if load.profile == "poisson" and not load.stopped and math.isclose(load.offered, rate):
                self._loads[number] = load.model_copy(update={"reference": True})
                return
        self._loads.append(self._offer(rate, "poisson", 0).model_copy(update={"reference": True}))

    @property
    def _bases(self) -> Sequence[float]:
        """Return the times alone of which the limits are multiples."""
        return self._reference.alone if self._reference and self._plan.common_slo else self._alone

    def _measure_alone(self) -> None:
        """Answer each row alone several times. The median counts."""
        numbers = list(range(len(self._rows)))
        self._progress.stage(f"{self._subject.name}: rows alone", ALONE_TURNS * len(numbers))
        times = np.zeros((ALONE_TURNS, len(numbers)))
        for turn in range(ALONE_TURNS):
            for number in numbers:
                (reply,) = _replies(self._generator.ask("alone", numbers=[number]))
                if reply.status != 200:
                    raise LoraFtError(f"a row alone was not answered (status {reply.status}): {reply.text}")
                times[turn, number] = reply.end
                if not turn:
                    self._texts.append(reply.text)
                    self._tokens += reply.tokens / len(numbers)
                self._progress.advance(turn * len(numbers) + number + 1)
        self._alone = np.median(times, axis=0).tolist()

    def _holds(self, rate: float) -> bool:
        """Offer a load; if it is too large, try again, since the machine may have been disturbed.

        The share of good requests counts over all attempts. A load ends early once it cannot be held any more.
        """
        attempts = self._plan.attempts
        spare = int((1 - slo.SHARE) * attempts * self._count(rate) + 1e-9)  # misses that all attempts may have
        ratios: list[float | None] = []
        for attempt in range(attempts):
            load = self._offer(rate, "poisson", attempt, None if self._plan.loads else spare)
            self._loads.append(load)
            ratios += load.ratios
            if not load.stopped and slo.within(ratios, self._plan.slo) >= slo.SHARE:
                return True
            spare -= sum(ratio is None or ratio > self._plan.slo for ratio in load.ratios)
            if spare < 0:
                break
        return False

    def _count(self, rate: float) -> int:
        """Return the number of requests at a load."""
        plan = self._plan
        return int(min(max(rate * plan.seconds, needed(slo.SHARE)), plan.requests))

    def _offer(self, rate: float, profile: Profile, attempt: int, misses: int | None = None) -> Load:
        """Offer a load, until more than `misses` requests have missed their limit; by default to its end."""
        plan = self._plan
        count = self._count(rate)
        seed = plan.seed + 1 + attempt
        numbers = np.random.default_rng(seed).integers(len(self._rows), size=count).tolist()
        limits = [plan.slo * self._bases[number] for number in numbers]
        times = arrivals(rate, count, profile, seed)
        self._progress.stage(f"{self._subject.name}: {rate:.3g} requests/s, {profile}")
        with Watch(self._pid) as watch:
            result = self._generator.ask("offer", times=times, numbers=numbers, limits=limits, misses=misses)
        load = self._load(rate, profile, numbers, result, watch.readings)
        self._progress.note(
            f"{self._subject.name}: {rate:.3g} requests/s, {profile}: {load.within:.0%} within the limit, "
            f"{load.goodput:.3g}/s{', stopped early' if load.stopped else ''}"
        )
        return load

    def _load(
        self, rate: float, profile: Profile, numbers: Sequence[int], result: dict[str, Any], readings: Sequence[Reading]
    ) -> Load:
        replies, wall, stopped = _replies(result), result["seconds"], len(result["replies"]) < len(numbers)
        numbers = numbers[: len(replies)]
        answered = [reply.status == 200 for reply in replies]
        seconds = [_rounded(reply.end) if reply.status == 200 else None for reply in replies]
        ratios = [
            None if value is None else round(value / self._bases[number], 3)
            for value, number in zip(seconds, numbers, strict=True)
        ]
        first = [_rounded(reply.first) if reply.status == 200 else None for reply in replies]
        per_token = [
            _rounded((reply.last - reply.first) / (reply.tokens - 1))
            for reply in replies
            if reply.status == 200 and reply.tokens > 1 and reply.last > reply.first
        ]
        same = [reply.text == self._texts[number] for reply, number in zip(replies, numbers, strict=True)]
        share = slo.within(ratios, self._plan.slo)
        return Load(
            profile=profile,
            offered=rate,
            stopped=stopped,
            answered=sum(answered) / wall,
            seconds=seconds,
            ratios=ratios,
            first=first,
            per_token=per_token,
            percentiles=percentiles(_known(seconds)),
            ratio=percentiles(_known(ratios)),
            first_token=percentiles(_known(first)),
            token=percentiles(per_token),
            within=share,
            goodput=share * len(replies) / wall,
            same=sum(same) / len(same),
            tokens=float(np.mean([reply.tokens for reply in replies])),
            failed=dict(Counter(reply.status for reply in replies if reply.status != 200)),
            timeouts=sum(reply.status != 200 and round(reply.end, 3) >= self._plan.limit for reply in replies),
            usage=_usage(readings),
            cpu=readings[-1].cpu / max(readings[-1].seconds, 1e-9) if readings else None,
            megabytes=max((reading.megabytes for reading in readings), default=None),
            client=result["cpu"] / wall,
            late=max(reply.late for reply in replies),
            engine=result["engine"],
        )

    def report(self) -> ServerReport:
        """Return what was measured so far."""
        knee = [load for load in self._loads if load.profile == "poisson" and load.offered == self._knee]
        order = ("poisson", "bursts")
        return ServerReport(
            name=self._subject.name,
            kind=self._subject.kind,
            source=self._subject.source,
            models=self._models,
            alone=[_rounded(value) for value in self._alone],
            percentiles=percentiles(self._alone) if self._alone else None,
            limits_from=self._reference.server if self._reference and self._plan.common_slo else self._subject.name,
            tokens=self._tokens,
            answers=self._texts,
            loads=sorted(self._loads, key=lambda load: (order.index(load.profile), load.offered)),
            knee=self._knee,
            goodput=float(np.mean([load.goodput for load in knee])) if knee else 0.0,
            error=self.error,
        )


def _replies(result: dict[str, Any]) -> list[Reply]:
    return [Reply(*fields) for fields in result["replies"]]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _rounded(seconds: float) -> float:
    return round(seconds, 5)


def _usage(readings: Sequence[Reading]) -> list[Usage]:
    """Return the cores that were busy between readings, and the memory."""
    return [
        Usage(
            seconds=round(now.seconds, 2),
            cpu=round((now.cpu - old.cpu) / max(now.seconds - old.seconds, 1e-9), 2),
            megabytes=round(now.megabytes, 1),
        )
        for old, now in pairwise(readings)
    ]


def _warnings(servers: Sequence[ServerReport], withheld: float) -> list[str]:
    warnings = [f"{server.name}: {server.error}" for server in servers if server.error]
    for server in servers:
        knee = server.at_knee()
        if knee is not None and knee.late > _LATE:
            warnings.append(f"{server.name}: a request was sent {knee.late:.2f} s too late; the machine is too busy")
        if any(load.same < 1 for load in server.loads):
            worst = min(load.same for load in server.loads)
            warnings.append(f"{server.name}: only {worst:.1%} of the answers under load equal those of the row alone")
        reference = server.at_reference()
        if reference is not None and reference.failed:
            warnings.append(
                f"{server.name}: {sum(reference.failed.values())} of {len(reference.seconds)} requests failed at the "
                f"reference load, {reference.timeouts} of them by a timeout; times are those of the others"
            )
    if withheld > _STOLEN:
        warnings.append(f"the host withheld {withheld:.0%} of a core (CPU steal)")
    return warnings
