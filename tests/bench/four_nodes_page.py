"""The section "Four nodes" of docs/benchmarks.md, from the records."""

import statistics
import textwrap
from collections.abc import Callable
from typing import Any

LATENCY_MS = 50
GROWTH = 1.15
RAY = ("gcs_server", "raylet", "serve controller", "rest of ray")
"""Processes that are Ray's alone. What an idle replica spends is Ray's and Serve's in part, but is counted as the replica's."""


def section(data: dict[str, Any]) -> list[str]:
    """Return the lines of the section."""
    facts, latencies, windows = data["facts"], data["latency"], data["cpu"]
    rounds = sorted({window["round"] for window in windows})
    others = [window["others_s"] / window["seconds"] for window in windows]
    failures = sum(each["failures"] for each in (*latencies, *windows))
    turns = sum(each["turns"] for each in (*latencies, *windows))
    return [
        "## Four nodes",
        "",
        *textwrap.wrap(
            f"In the lab (`aurora-cli lab`): four nodes, all on one machine with {facts['cores']} cores, {facts['processor']}, "
            f"Linux {facts['linux']}; Aurora {facts['aurora']}, Ray {facts['ray']}, Redis {facts['redis']}, "
            f"Python {facts['python']}, {facts['measured']}. What is acknowledged is on a replica of Redis too (law 8). "
            f"Users come at random moments, {data['per_second']:.0f} turns/s in all, whether the last one has its answer or not; "
            f"20-token instant replies, ten turns a conversation. {len(rounds)} rounds, {data['window_s']:.0f} s for each figure "
            f"in each. While CPU was measured, others on the machine took {statistics.median(others):.2f} cores (median; at most "
            f"{max(others):.2f}). Failed requests: {failures} of {turns}.",
            120,
        ),
        "By itself: `sudo .venv/bin/python -m tests.bench four-nodes`, about five minutes.",
        "",
        *_bars(latencies, windows, rounds),
        "",
        "### Added latency at each door",
        "",
        "From the moment a question is due to its answer, all of it: the engine's own time (instant replies) is not taken off.",
        "aurora has no engine: its turns are generated elsewhere. The balancer is what `aurora-cli lb haproxy` prints.",
        "",
        "| door | turns | whole reply p50 / p99 ms | p99 by round | SSE first piece p50 / p99 ms | SSE to its end p50 / p99 ms |",
        "|---|---|---|---|---|---|",
        *_doors(latencies),
        "",
        "### CPU of a turn when 1, 2 or 4 nodes serve",
        "",
        "The same lab, the same rate: all users come to one node, or spread over two, or over all four. (Their turns are",
        "supervised there and generated there or elsewhere, as Serve chooses.) All processes of the four nodes are counted:",
        "replicas, HAProxy, Redis and its replicas, Sentinels, Ray. What they spend in the same time when nobody comes,",
        "measured in the same round, is taken off. The order changes with the rounds, and so do the nodes.",
        "",
        "| nodes that serve | CPU ms per turn, median (min–max) | of one node, median of the rounds' ratios |",
        "|---|---|---|",
        *_costs(windows, rounds),
        "",
        "| process | CPU ms per turn, 1 serves | 2 serve | 4 serve | cores when nobody comes |",
        "|---|---|---|---|---|",
        *_roles(windows, rounds),
        "",
        *_idle(windows),
    ]


def _bars(latencies: list[dict[str, Any]], windows: list[dict[str, Any]], rounds: list[int]) -> list[str]:
    bars = []
    for what, stream, name in (("whole reply", False, ""), ("first piece of a stream", True, "first_")):
        for quantile in ("p50", "p99"):
            worst = max((row for row in latencies if row["stream"] == stream), key=lambda row: row[f"{name}{quantile}_ms"])
            value = worst[f"{name}{quantile}_ms"]
            bars.append(
                (
                    f"added {quantile} < {LATENCY_MS} ms at every door, {what}",
                    value < LATENCY_MS,
                    f"{value:.1f} ms ({worst['door']})",
                )
            )
    growth = statistics.median(_ratios(windows, rounds, 4))
    bars.append((f"CPU of a turn, 4 nodes ≤ {GROWTH} × 1 node", growth <= GROWTH, f"{growth:.2f} ×"))
    lines = [f"| {bar} | {value} | {'reached' if reached else '**not reached**'} |" for bar, reached, value in bars]
    return ["| bar | this run | |", "|---|---|---|", *lines]


def _doors(latencies: list[dict[str, Any]]) -> list[str]:
    lines = []
    for whole in (row for row in latencies if not row["stream"]):
        stream = next(row for row in latencies if row["stream"] and row["door"] == whole["door"])
        by_round = ", ".join(f"{p99:.0f}" for p99 in whole["p99_by_round_ms"])
        lines.append(
            f"| {whole['door']} | {whole['turns']} + {stream['turns']} "
            f"| {whole['p50_ms']:.1f} / {whole['p99_ms']:.1f} | {by_round} "
            f"| {stream['first_p50_ms']:.1f} / {stream['first_p99_ms']:.1f} | {stream['p50_ms']:.1f} / {stream['p99_ms']:.1f} |"
        )
    return lines


def _costs(windows: list[dict[str, Any]], rounds: list[int]) -> list[str]:
    lines = []
    for nodes in (1, 2, 4):
        costs = [_cost(windows, each, nodes) for each in rounds]
        ratio = statistics.median(_ratios(windows, rounds, nodes))
        lines.append(f"| {nodes} | {statistics.median(costs):.2f} ({min(costs):.2f}–{max(costs):.2f}) | {ratio:.2f} |")
    return lines


def _roles(windows: list[dict[str, Any]], rounds: list[int]) -> list[str]:
    idle = [window for window in windows if not window["doors"]]
    rows: list[tuple[str, list[float], float]] = []
    for role in {role for window in windows for role in window["cpu_s"]}:
        costs = [statistics.median(_cost(windows, each, nodes, role) for each in rounds) for nodes in (1, 2, 4)]
        cores = statistics.median(window["cpu_s"].get(role, 0.0) / window["seconds"] for window in idle)
        rows.append((role, costs, cores))
    rows.sort(key=lambda row: -row[1][0])
    return [f"| {role} | {' | '.join(f'{cost:.2f}' for cost in costs)} | {cores:.3f} |" for role, costs, cores in rows]


def _idle(windows: list[dict[str, Any]]) -> list[str]:
    def cores(some: list[dict[str, Any]], counts: Callable[[str], bool]) -> float:
        return float(statistics.median(sum(s for role, s in w["cpu_s"].items() if counts(role)) / w["seconds"] for w in some))

    idle, busy = ([w for w in windows if len(w["doors"]) == nodes] for nodes in (0, 4))
    total, of_ray = cores(idle, lambda role: True), cores(idle, lambda role: role in RAY)
    loaded = cores(busy, lambda role: True)
    return [
        f"When nobody comes, four nodes take {total:.2f} cores, {of_ray:.2f} of them Ray's own processes ({', '.join(RAY)}): "
        f"{of_ray / total:.0%}.",
        f"With users at all four they take {loaded:.2f} cores, of which Ray's idle cost is {of_ray / loaded:.0%}.",
    ]


def _ratios(windows: list[dict[str, Any]], rounds: list[int], nodes: int) -> list[float]:
    return [_cost(windows, each, nodes) / _cost(windows, each, 1) for each in rounds]


def _cost(windows: list[dict[str, Any]], number: int, nodes: int, role: str | None = None) -> float:
    """Return the CPU milliseconds of a turn in a round, beyond what is spent when nobody comes; of one role, or of all."""

    def used(window: dict[str, Any]) -> float:
        return float(sum(window["cpu_s"].values()) if role is None else window["cpu_s"].get(role, 0.0))

    idle, busy = (next(w for w in windows if w["round"] == number and len(w["doors"]) == count) for count in (0, nodes))
    return float((used(busy) - used(idle) / idle["seconds"] * busy["seconds"]) / busy["turns"] * 1e3)
