"""From the records of a run to docs/benchmarks.md. Prose that explains a figure stands beside it in docs/benchmarks-*notes.md."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import four_nodes_page, one_ollama_page


def write_page(page: Path, data: dict[str, Any]) -> None:
    """Write the page from `data`, as much of it as has been measured, each part with the notes that belong to it."""
    out = ["# Benchmarks", "", "Written by `make bench` from `benchmarks.json`; do not edit."]
    if "rounds" in data:
        out += ["", *_one_machine(data["facts"], data["rounds"]), *_notes(page, "benchmarks-notes.md")]
    if "ollama" in data:
        out += ["", *one_ollama_page.section(data["ollama"]), *_notes(page, "benchmarks-ollama-notes.md")]
    if "four_nodes" in data:
        out += ["", *four_nodes_page.section(data["four_nodes"]), *_notes(page, "benchmarks-four-nodes-notes.md")]
    out += [
        "",
        "## vLLM on a GPU",
        "",
        "Not measured: there was no GPU at hand so far. On the CPU the engine is only tested (`make test-vllm`).",
    ]
    page.write_text("\n".join(out) + "\n")


def _notes(page: Path, name: str) -> list[str]:
    notes = page.with_name(name)
    return ["", notes.read_text().strip()] if notes.exists() else []


def _one_machine(facts: dict[str, Any], rounds: list[dict[str, Any]]) -> list[str]:
    count = len({id(r) for r in rounds if r["system"] == "aurora" and r["connections"] == 1 and not r["stream"]})
    out = [
        "## One machine",
        "",
        "20-token instant replies of the scripted engine, ten turns a conversation, load generator included, all on one machine",
        f"({facts['cores']} cores, {facts['processor']}, Python {facts['python']}, {facts['measured']}).",
        f"{count} rounds, systems alternating; medians. The machine is shared and noisy: read the ratios.",
        "",
        "*one process* is the seed's own idea: one FastAPI process + Redis + the same engine in process. It is not durable.",
        "",
        *_bars(rounds),
        "",
        "| | connections | Aurora turns/s (min–max) | one process turns/s | ratio | Aurora p50 / p99 ms "
        "| one process p50 / p99 ms | added p50 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for connections, stream in sorted({(r["connections"], r["stream"]) for r in rounds}):
        ours = _pick(rounds, "aurora", connections, stream)
        theirs = _pick(rounds, "one process", connections, stream)
        rates = [r["rate"] for r in ours]
        p50, other = _median(ours, "p50_ms"), _median(theirs, "p50_ms")
        out.append(
            f"| {'SSE' if stream else 'whole reply'} | {connections} "
            f"| {_median(ours, 'rate'):.0f} ({min(rates):.0f}–{max(rates):.0f}) "
            f"| {_median(theirs, 'rate'):.0f} | {_median(ours, 'rate') / _median(theirs, 'rate'):.2f} "
            f"| {p50:.1f} / {_median(ours, 'p99_ms'):.1f} | {other:.1f} / {_median(theirs, 'p99_ms'):.1f} | {p50 - other:.1f} |"
        )
    failures = sum(r["failures"] for r in rounds)
    turns = sum(r["turns"] for r in rounds)
    out += ["", f"Failed requests: {failures} of {turns}.", "", "### What a turn costs (32 connections, whole reply)", ""]
    out += ["| | Aurora | one process |", "|---|---|---|"]
    ours, theirs = _pick(rounds, "aurora", 32, False), _pick(rounds, "one process", 32, False)
    both: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("CPU ms per turn, all processes", lambda r: sum(r["cpu_ms"].values())),
        ("Redis round trips per turn", lambda r: r["round_trips"]),
        ("Redis commands executed per turn, in scripts too", lambda r: r["commands"]),
    ]
    for title, value in both:
        out.append(f"| {title} | {statistics.median(map(value, ours)):.2f} | {statistics.median(map(value, theirs)):.2f} |")
    out += ["", "CPU milliseconds per turn by process:", "", "| process | Aurora |", "|---|---|"]
    roles = {role for r in ours for role in r["cpu_ms"]}
    costs = {role: statistics.median(r["cpu_ms"].get(role, 0) for r in ours) for role in roles}
    out += [f"| {role} | {cost:.2f} |" for role, cost in sorted(costs.items(), key=lambda item: -item[1])]
    return out


def _bars(rounds: list[dict[str, Any]]) -> list[str]:
    """Say for each bar whether this run reached it."""

    def added(stream: bool) -> float:
        ours, theirs = (_median(_pick(rounds, system, 1, stream), "p50_ms") for system in ("aurora", "one process"))
        return ours - theirs

    busy = _pick(rounds, "aurora", 32, False)
    rate, best, trips = _median(busy, "rate"), max(r["rate"] for r in busy), _median(busy, "round_trips")
    bars = [
        ("added latency p50 ≤ 6 ms at 1 connection, whole reply", added(False) <= 6, f"{added(False):.1f} ms"),
        ("the same, streamed", added(True) <= 6, f"{added(True):.1f} ms"),
        ("≥ 400 turns/s at 32 connections on 2 cores, whole reply", rate >= 400, f"median {rate:.0f}, best round {best:.0f}"),
        ("≤ 6 Redis round trips per whole turn of one piece", trips <= 6, f"{trips:.2f}"),
    ]
    out = ["| bar | this run | |", "|---|---|---|"]
    return out + [f"| {bar} | {value} | {'reached' if reached else '**not reached**'} |" for bar, reached, value in bars]


def _pick(rounds: list[dict[str, Any]], system: str, connections: int, stream: bool) -> list[dict[str, Any]]:
    return [r for r in rounds if (r["system"], r["connections"], r["stream"]) == (system, connections, stream)]


def _median(rounds: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(r[name] for r in rounds))
