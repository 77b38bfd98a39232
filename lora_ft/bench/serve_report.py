"""The report of a benchmark of servers: one versioned JSON file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lora_ft.bench.arrivals import Profile
from lora_ft.bench.report import Percentiles
from lora_ft.bench.versioned_json import VERSION, Record, Strict

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LoadPlan(Strict):
    """Settings of the load."""

    rows: PositiveInt = 64
    """Rows of the file that requests are drawn from. Each is answered alone first."""
    requests: Annotated[int, Field(ge=64)] = 150
    """Maximum requests at each load. 64 are the least, since p90 requires them."""
    seconds: Positive = 12.0
    """Duration of each load, if that makes between 64 requests and the maximum."""
    slo: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3.0
    """Limit of a request's time, as a multiple of its time alone."""
    common_slo: bool = False
    """True if every server's limits are multiples of the times alone on the first server, instead of its own."""
    growth: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.3
    """Factor between loads until one is too large."""
    start: Positive = 0.5
    """First load, as a share of the speed at which rows are answered one after another; rounded to a power of
    `growth`."""
    loads: tuple[Positive, ...] = ()
    """Loads to offer instead of searching for the knee, in requests per second."""
    attempts: PositiveInt = 2
    """Times that a load is offered before it counts as too large."""
    refinements: Annotated[int, Field(ge=0)] = 2
    """Bisections of the knee."""
    bursts: tuple[Positive, ...] = (0.5, 0.8)
    """Loads that are repeated in bursts, as shares of the knee."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """Maximum answer length, in tokens; 0 for the server's default."""
    limit: Positive = 60.0
    """Time after which a request has failed, in seconds."""
    seed: int = 0


class Usage(Strict):
    """State of the server at one time.

    Attributes:
        seconds: Time since the first request.
        cpu: Cores that were busy since the reading before.
        megabytes: Resident memory.
    """

    seconds: float
    cpu: float
    megabytes: float


class Load(Strict):
    """One load. Times count from a request's arrival, in seconds.

    Attributes:
        profile: Distribution of arrivals.
        offered, answered: Requests per second.
        stopped: True if no further requests were sent, since too many had missed their limit.
        reference: True if this is the reference load: the knee of the first server.
        seconds: Time to the end of each answer; None for failed requests.
        ratios: The same, over the time alone of which the row's limit is a multiple.
        first: Time to the first text.
        per_token: Time of a token after the first, as the mean of an answer.
        percentiles, ratio, first_token, token: Percentiles of `seconds`, `ratios`, `first` and `per_token`.
        within: Share of requests that kept their limit.
        goodput: Such requests per second.
        same: Share of answers that equal those of the row alone.
        tokens: Mean length of an answer.
        failed: Failed requests by status; 0 if there was none.
        timeouts: Failed requests that took longer than the plan's limit.
        usage: CPU and memory of the server over time; empty if it cannot be read.
        cpu: Cores that the server kept busy; None if unknown.
        megabytes: Largest resident memory; None if unknown.
        client: Cores that the load generator kept busy.
        late: Largest time by which a request was sent too late.
        engine: Totals of the engine, if it runs in this process.
    """

    profile: Profile
    offered: float
    answered: float
    stopped: bool = False
    reference: bool = False
    seconds: list[float | None]
    ratios: list[float | None]
    first: list[float | None]
    per_token: list[float]
    percentiles: Percentiles
    ratio: Percentiles
    first_token: Percentiles
    token: Percentiles
    within: float
    goodput: float
    same: float
    tokens: float
    failed: dict[int, int]
    timeouts: int = 0
    usage: list[Usage]
    cpu: float | None
    megabytes: float | None
    client: float
    late: float
    engine: dict[str, float]


class ServerReport(Strict):
    """One server.

    Attributes:
        name: Unique name in the report.
        kind: "url", "command", or "engine" for a bundle without HTTP.
        source: Address, command or folder.
        models: Models that requests were sent to.
        alone: Time of each row alone on the idle server, in seconds.
        percentiles: Its percentiles.
        limits_from: Name of the server whose times alone set the limits.
        tokens: Mean length of an answer.
        answers: Answer to each row alone.
        loads: Loads in ascending order: Poisson arrivals, then bursts. The reference load may lie beyond the knee.
        knee: Largest load at which 90 % of requests keep their limit, in requests per second; None if there is none.
        goodput: Requests within their limit per second at the knee.
        error: Reason why the server was excluded, or "".
    """

    name: str
    kind: Literal["url", "command", "engine"]
    source: str
    models: list[str]
    alone: list[float]
    percentiles: Percentiles | None
    limits_from: str
    tokens: float
    answers: list[str] = Field(default_factory=list)
    loads: list[Load]
    knee: float | None
    goodput: float
    error: str = ""

    def at_knee(self) -> Load | None:
        """Return the load of Poisson arrivals at the knee."""
        at = [load for load in self.loads if load.profile == "poisson" and load.offered == self.knee]
        return at[-1] if at else None

    def at_reference(self) -> Load | None:
        """Return the reference load."""
        return next((load for load in self.loads if load.reference), None)


class ServeReport(Record):
    """The report of a benchmark of servers.

    Attributes:
        version: Version of this format.
        plan: Settings of the load.
        data: Name of the file with the rows.
        environment: Machine and versions, by name.
        began: Start, in UTC and ISO 8601.
        seconds: Duration.
        interrupted: True if the benchmark was stopped before its end.
        servers: The measured servers. Ratios are over the first.
        warnings: Problems with the measurement.
    """

    version: Literal[1] = VERSION  # type: ignore[assignment]
    plan: LoadPlan
    data: str
    environment: dict[str, str]
    began: str
    seconds: float
    interrupted: bool
    servers: list[ServerReport]
    warnings: list[str]
