"""The part of docs/benchmarks.md about one Ollama: Aurora, the seed's container and LiteLLM before one and the same stand-in."""

import statistics
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.bench.one_ollama import AURORA, BARE, LITELLM, PACE, SEED

NAMES = {AURORA: "Aurora", SEED: "the seed's container", LITELLM: "LiteLLM", BARE: "the stand-in itself"}
KINDS = [(tokens, stream) for tokens in (20, 300) for stream in (False, True)]
BUSY = 32
_HEAD = (
    "| system | connections | turns/s (min–max) | p50 / p99 ms | first token p50 ms | added by the system, ms "
    "| CPU ms per turn | turns per CPU-second | CPU ms per turn: stand-in, load generator |"
)
_RULE = "|---|---|---|---|---|---|---|---|---|"

_ABOUT = """\
CPU is that of a system's own processes: of Aurora all of Ray, HAProxy and Redis, of the seed's container its Redis, too. The
seed's container asks Ollama for a whole reply where one is wanted; Aurora always for a stream, as what was said must be
stored before it is lost. Both send the conversation, up to ten turns of it; LiteLLM keeps none, and is asked with the system
prompt and one message; its one worker uses one core at most. A turn counts when all of its tokens came. What is said all at
once, Aurora stores and sends as one piece, the others token by token: at a model's pace, in the last tables, each has to take
it as it comes."""

Records = list[dict[str, Any]]


def section(data: dict[str, Any]) -> list[str]:
    """Return the lines of the section."""
    facts, records = data["facts"], data["measured"]
    rounds = 1 + max(r["round"] for r in records)
    litellm = f"the LiteLLM proxy {data['litellm']}" if data["litellm"] else "no LiteLLM proxy, as it was not installed"
    out = [
        "## One Ollama",
        "",
        "Aurora (one replica of each kind, the engine `ollama`), the seed's container (one FastAPI process, Redis, the `ollama`",
        f"client; not durable) and {litellm}, each before one and the same",
        "stand-in for Ollama that says `num_predict` tokens at once, a line for each, all on one machine with the load generator",
        f"({facts['cores']} cores, {facts['processor']}, Python {facts['python']}, {facts['measured']}).",
        f"{rounds} {'round' if rounds == 1 else 'rounds'} of {data['window_s']:g} s a figure, systems alternating; medians. "
        "The machine is shared and noisy: read the ratios.",
        "",
        *_ABOUT.splitlines(),
        "",
        *_idle(data),
        "",
        *_bars(records),
    ]
    for tokens, stream in KINDS:
        out += ["", f"### {tokens} tokens, {'streamed' if stream else 'whole'}", "", *_table(records, tokens, stream, 0.0)]
    for tokens in sorted({r["tokens"] for r in records if r["pace"]}):
        out += ["", f"### {tokens} tokens, streamed, at {PACE:g} tokens a second", ""]
        out += ["As from a model: the speed is the stand-in's, and each token comes by itself.", ""]
        out += _table(records, tokens, True, PACE)
    failures, turns = sum(r["failures"] for r in records), sum(r["turns"] for r in records)
    out += ["", f"Failed requests: {failures} of {turns + failures}{_who_failed(records)}."]
    return [*out, "", f"### Where Aurora's CPU goes ({BUSY} connections, ms per turn)", "", *_by_process(records)]


def _idle(data: dict[str, Any]) -> list[str]:
    """Say what the systems spend when nobody asks, which the cost of a turn holds, too, the more so the fewer there are."""
    told = ", ".join(f"{NAMES[name]} {cores:.2f}" for name, cores in data["idle_cores"].items())
    what = f"While nobody asks, cores in use: {told}. It is not taken off: where turns are few, it is much of what one costs."
    return textwrap.wrap(what, 126)


def _bars(records: Records) -> list[str]:
    """Say for each bar, and each way to ask, whether this run reached it."""
    rows = []
    for tokens, stream, pace in [*((*kind, 0.0) for kind in KINDS), (300, True, PACE)]:
        what = f"{tokens} tokens, {'streamed' if stream else 'whole'}{f', {pace:g} a second' if pace else ''}"
        ours, seeds, litellms = (_pick(records, name, tokens, stream, BUSY, pace) for name in (AURORA, SEED, LITELLM))
        if ours and seeds:
            ratio = _median(seeds, _cpu) / _median(ours, _cpu)
            rows.append((f"≥ 1.0 × the seed's container in turns per CPU-second, {what}", ratio >= 1, f"{ratio:.2f} ×"))
        if ours and litellms and not pace:  # there the pace is the stand-in's
            rate, others = _median(ours, _rate), _median(litellms, _rate)
            told = f"{rate / others:.1f} ×" if others else "LiteLLM answered none"
            rows.append((f"≥ 5 × LiteLLM's requests/s, {what}", rate >= 5 * others > 0, told))
    for tokens, pace in ((20, 0.0), (300, 0.0), (20, PACE)):
        ours, bare = (_pick(records, name, tokens, True, 1, pace) for name in (AURORA, BARE))
        if ours and bare:
            added, what = (
                _median(ours, _first) - _median(bare, _first),
                f"{tokens} tokens{f', {pace:g} a second' if pace else ''}",
            )
            rows.append((f"added time to first token p50 ≤ 6 ms at 1 connection, {what}", added <= 6, f"{added:.1f} ms"))
    rows.sort(key=lambda row: ("LiteLLM" in row[0]) + 2 * ("first token" in row[0]))
    if not any(r["system"] == LITELLM for r in records):
        rows.append(("≥ 5 × LiteLLM's requests/s", False, "not measured"))
    out = [f"| bar ({BUSY} connections, unless it says otherwise) | this run | |", "|---|---|---|"]
    return out + [f"| {bar} | {value} | {'reached' if reached else '**not reached**'} |" for bar, reached, value in rows]


def _table(records: Records, tokens: int, stream: bool, pace: float) -> list[str]:
    out = [_HEAD, _RULE]
    for connections in sorted({r["connections"] for r in records if r["pace"] == pace}):
        bare = _pick(records, BARE, tokens, stream, connections, pace)
        for name in (AURORA, SEED, LITELLM, BARE):
            found = _pick(records, name, tokens, stream, connections, pace)
            if not found or not any(r["turns"] for r in found):
                continue
            measure = _first if stream else _p50
            added = f"{_median(found, measure) - _median(bare, measure):.1f}" if bare and name != BARE else "–"
            rates = [r["rate"] for r in found]
            own = f"{_median(found, _cpu):.2f} | {_median(found, _per_cpu_second):.0f}" if name != BARE else "– | –"
            out.append(
                f"| {NAMES[name]} | {connections} | {_median(found, _rate):.1f} ({min(rates):.1f}–{max(rates):.1f}) "
                f"| {_median(found, _p50):.1f} / {statistics.median(r['p99_ms'] for r in found):.1f} "
                f"| {f'{_median(found, _first):.1f}' if stream else '–'} | {added} | {own} "
                f"| {statistics.median(r['standin_ms'] for r in found):.2f}, "
                f"{statistics.median(r['generator_ms'] for r in found):.2f} |"
            )
    return out


def _cost(role: str, record: dict[str, Any]) -> float:
    return float(record["cpu_ms"].get(role, 0.0))


def _by_process(records: Records) -> list[str]:
    columns = [_pick(records, AURORA, tokens, stream, BUSY) for tokens, stream in KINDS]
    roles = {role for column in columns for r in column for role in r["cpu_ms"]}
    costs = {role: [_median(column, partial(_cost, role)) for column in columns] for role in roles}
    heads = " | ".join(f"{tokens} {'streamed' if stream else 'whole'}" for tokens, stream in KINDS)
    out = [f"| process | {heads} |", "|---|" + "---|" * len(KINDS)]
    ordered = sorted(costs.items(), key=lambda item: -sum(item[1]))
    return out + [f"| {role} | {' | '.join(f'{cost:.2f}' for cost in each)} |" for role, each in ordered]


def _who_failed(records: Records) -> str:
    failed = {name: sum(r["failures"] for r in records if r["system"] == name) for name in NAMES}
    told = ", ".join(f"{NAMES[name]} {count}" for name, count in failed.items() if count)
    return f" ({told})" if told else ""


def _pick(records: Records, system: str, tokens: int, stream: bool, connections: int, pace: float = 0.0) -> Records:
    wanted = (system, tokens, stream, connections, pace)
    return [r for r in records if (r["system"], r["tokens"], r["stream"], r["connections"], r["pace"]) == wanted]


def _median(records: Records, value: Callable[[dict[str, Any]], float]) -> float:
    return float(statistics.median(map(value, records))) if records else 0.0


def _rate(record: dict[str, Any]) -> float:
    return float(record["rate"])


def _p50(record: dict[str, Any]) -> float:
    return float(record["p50_ms"])


def _first(record: dict[str, Any]) -> float:
    return float(record["first_p50_ms"])


def _cpu(record: dict[str, Any]) -> float:
    return float(sum(record["cpu_ms"].values()))


def _per_cpu_second(record: dict[str, Any]) -> float:
    cost = _cpu(record)
    return 1e3 / cost if cost else 0.0
