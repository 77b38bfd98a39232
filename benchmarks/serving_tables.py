"""The tables of `benchmarks.studies.serving`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ft.reports.markdown import table

SERVE, ENGINE, BATCHES = "lora-ft serve", "the engine without HTTP", "whole requests, batch 8"
OWN = (SERVE, ENGINE, BATCHES)
"""Servers on the runtime of lora-ft."""


def tables(results: dict[str, Any]) -> str:
    """Return the figures at each server's knee and at the reference load in Markdown, and those of equal loads."""
    servers = results["servers"]
    first = servers[0]
    rows = []
    for server in servers:
        load = at_knee(server)
        alone = [server["name"], _number(server["rouge1"], 1), _ms((server["alone"] or {}).get("p50"))]
        if load is None:
            rows.append([*alone, *["–"] * 7])
            continue
        rows.append(
            [
                *alone,
                f"{server['knee']:.2f}",
                f"{server['goodput']:.2f}",
                f"{first['goodput'] / server['goodput']:.1f}",
                _ms(load["percentiles"]["p50"]),
                _ms(load["percentiles"]["p90"]),
                _ms(load["first_token"]["p50"]),
                _number(load["megabytes"], 0),
            ]
        )
    columns = [
        "server",
        "ROUGE-1",
        "alone, ms",
        "knee, 1/s",
        "goodput, 1/s",
        "times less than the first",
        "end, p50, ms",
        "end, p90, ms",
        "first text, p50, ms",
        "MB",
    ]
    same = [
        [
            f"{load['offered']:.2f}",
            server["name"],
            f"{100 * load['within']:.0f}",
            _ms(load["percentiles"]["p50"]),
            _ms(load["percentiles"]["p90"]),
            _ms(load["first_token"]["p50"]),
            _number(load["cpu"], 2),
        ]
        for server, load in same_loads(servers)
    ]
    headings = [
        "offered, 1/s",
        "server",
        "within the limit, %",
        "end, p50, ms",
        "end, p90, ms",
        "first text, p50, ms",
        "cores",
    ]
    return "\n\n".join([table(columns, rows), *equal_load(servers), *([table(headings, same)] if same else [])])


def equal_load(servers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of all servers at the reference load, unless only one was measured at it."""
    pairs = [(server, load) for server in servers if (load := at_reference(server)) is not None]
    if len(pairs) < 2:
        return []
    first = pairs[0][1]["first_token"]["p50"]
    rows = [
        [
            server["name"],
            f"{100 * load['within']:.0f}",
            _ms(load["first_token"]["p50"]),
            _number(load["first_token"]["p50"] and load["first_token"]["p50"] / first, 1),
            _ms(load["percentiles"]["p50"]),
            _ms(load["percentiles"]["p90"]),
            f"{sum(load['failed'].values())} of {load['requests']}",
        ]
        for server, load in pairs
    ]
    headings = [
        f"at {pairs[0][1]['offered']:.2f} requests/s",
        "within the limit, %",
        "first text, p50, ms",
        "times the first",
        "end, p50, ms",
        "end, p90, ms",
        "failed",
    ]
    return [table(headings, rows)]


def same_loads(servers: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return lora-ft's servers with each load that several of them were offered to its end, by load."""
    loads = [
        (server, load)
        for server in servers
        if server["name"] in OWN
        for load in server["loads"]
        if load["profile"] == "poisson" and not load["stopped"]
    ]
    counts = [load["offered"] for _, load in loads]
    return sorted((pair for pair in loads if counts.count(pair[1]["offered"]) > 1), key=lambda pair: pair[1]["offered"])


def at_knee(server: dict[str, Any]) -> dict[str, Any] | None:
    """Return the load of Poisson arrivals at the knee."""
    loads = (load for load in reversed(server["loads"]) if load["profile"] == "poisson")
    return next((load for load in loads if load["offered"] == server["knee"]), None)


def at_reference(server: dict[str, Any]) -> dict[str, Any] | None:
    """Return the reference load: the knee of the first server."""
    return next((load for load in server["loads"] if load["reference"]), None)


def limits(servers: Sequence[dict[str, Any]], slo: float) -> str:
    """Return the sentence that says whose times alone set the limits of which servers."""
    first = servers[0]["name"]
    own = [server["name"] for server in servers if server["limits_from"] == server["name"] != first]
    text = f"A request is good within {slo:g} times the time of its row alone on {first}."
    if own:
        text += (
            f" For {'; '.join(own)}, the row alone on that server itself counts: a looser limit for a server that is "
            "slower alone."
        )
    return text


def _ms(seconds: float | None) -> str:
    return _number(None if seconds is None else 1000 * seconds, 0)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
