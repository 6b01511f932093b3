"""The section "Four nodes" of docs/benchmarks.md, from the records."""

import statistics
import textwrap
from collections.abc import Callable
from typing import Any

LATENCY_MS = 50
GROWTH = 1.15
UP_S = 60
MEMORY_GB = 5
Rate = Callable[[int], float]
"""How many turns come a second in all, when so many nodes serve."""
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
            f"{max(others):.2f}). Failed requests: {failures} of {turns}. Memory: PSS of all processes of the four nodes.",
            120,
        ),
        "By itself: `sudo .venv/bin/python -m tests.bench four-nodes`, about six minutes.",
        "",
        *_bars(data, rounds),
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
        *textwrap.wrap(
            f"The same lab: all users come to one node, or spread over two, or over all four; once as many in all however many "
            f"serve ({data['per_second']:.0f} turns/s), once as many at each ({data['per_node']:.0f}). Their turns are generated "
            f"at that node, or elsewhere where it has no engine. All processes of the four nodes are counted: replicas, HAProxy, "
            f"Redis and its replicas, Sentinels, Ray. What they spend in the same time when nobody comes, measured in the same "
            f"round, is taken off. The order changes with the rounds, and so do the nodes.",
            120,
        ),
        "",
        "| nodes that serve | turns/s in all | CPU ms per turn, median (min–max) | of one node, median of the rounds' ratios |",
        "|---|---|---|---|",
        *_costs(windows, rounds, lambda nodes: data["per_second"]),
        *_costs(windows, rounds, lambda nodes: data["per_node"] * nodes),
        "",
        f"Of {data['per_second']:.0f} turns/s in all:",
        "",
        "| process | CPU ms per turn, 1 serves | 2 serve | 4 serve | cores when nobody comes |",
        "|---|---|---|---|---|",
        *_roles(windows, rounds, data["per_second"]),
        "",
        *_idle(windows, data["per_second"]),
    ]


def _bars(data: dict[str, Any], rounds: list[int]) -> list[str]:
    latencies, windows = data["latency"], data["cpu"]
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
    for said, rate in (("in all", lambda nodes: data["per_second"]), ("at each", lambda nodes: data["per_node"] * nodes)):
        growth = statistics.median(_ratios(windows, rounds, 4, rate))
        bars.append((f"CPU of a turn, 4 nodes ≤ {GROWTH} × 1 node, as many turns {said}", growth <= GROWTH, f"{growth:.2f} ×"))
    bars.append((f"four nodes have answered within {UP_S} s", data["up_s"] < UP_S, f"{data['up_s']:.0f} s"))
    memory = data["memory_bytes"] / 1e9
    bars.append((f"their memory < {MEMORY_GB} GB, after the load", memory < MEMORY_GB, f"{memory:.1f} GB"))
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


def _costs(windows: list[dict[str, Any]], rounds: list[int], rate: Rate) -> list[str]:
    lines = []
    for nodes in (1, 2, 4):
        costs = [_cost(windows, each, nodes, rate(nodes)) for each in rounds]
        ratio = statistics.median(_ratios(windows, rounds, nodes, rate))
        lines.append(
            f"| {nodes} | {rate(nodes):.0f} | {statistics.median(costs):.2f} ({min(costs):.2f}–{max(costs):.2f}) | {ratio:.2f} |"
        )
    return lines


def _roles(windows: list[dict[str, Any]], rounds: list[int], per_second: float) -> list[str]:
    idle = [window for window in windows if not window["doors"]]
    rows: list[tuple[str, list[float], float]] = []
    for role in {role for window in windows for role in window["cpu_s"]}:
        costs = [statistics.median(_cost(windows, each, nodes, per_second, role) for each in rounds) for nodes in (1, 2, 4)]
        cores = statistics.median(window["cpu_s"].get(role, 0.0) / window["seconds"] for window in idle)
        rows.append((role, costs, cores))
    rows.sort(key=lambda row: -row[1][0])
    return [f"| {role} | {' | '.join(f'{cost:.2f}' for cost in costs)} | {cores:.3f} |" for role, costs, cores in rows]


def _idle(windows: list[dict[str, Any]], per_second: float) -> list[str]:
    def cores(some: list[dict[str, Any]], counts: Callable[[str], bool]) -> float:
        return float(statistics.median(sum(s for role, s in w["cpu_s"].items() if counts(role)) / w["seconds"] for w in some))

    idle, busy = ([w for w in windows if (len(w["doors"]), w["per_second"]) == at] for at in ((0, 0), (4, per_second)))
    total, of_ray = cores(idle, lambda role: True), cores(idle, lambda role: role in RAY)
    loaded = cores(busy, lambda role: True)
    return [
        f"When nobody comes, four nodes take {total:.2f} cores, {of_ray:.2f} of them Ray's own processes ({', '.join(RAY)}): "
        f"{of_ray / total:.0%}.",
        f"With users at all four they take {loaded:.2f} cores, of which Ray's idle cost is {of_ray / loaded:.0%}.",
    ]


def _ratios(windows: list[dict[str, Any]], rounds: list[int], nodes: int, rate: Rate) -> list[float]:
    return [_cost(windows, each, nodes, rate(nodes)) / _cost(windows, each, 1, rate(1)) for each in rounds]


def _cost(windows: list[dict[str, Any]], number: int, nodes: int, per_second: float, role: str | None = None) -> float:
    """Return the CPU milliseconds of a turn in a round, beyond what is spent when nobody comes; of one role, or of all."""

    def used(window: dict[str, Any]) -> float:
        return float(sum(window["cpu_s"].values()) if role is None else window["cpu_s"].get(role, 0.0))

    of_round = {(len(w["doors"]), w["per_second"]): w for w in windows if w["round"] == number}
    idle, busy = of_round[0, 0], of_round[nodes, per_second]
    return float((used(busy) - used(idle) / idle["seconds"] * busy["seconds"]) / busy["turns"] * 1e3)
