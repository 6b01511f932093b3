"""Four nodes: what the lab adds to an answer at each door, and what a turn costs when one, two or four nodes serve.

In a lab of its own, with law 8 as a cluster has it (`replicas: 1`). Users come at `PER_SECOND` in all, in the clients' network.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import orjson
from rich.console import Console

from cluster.lab.lab import Lab
from cluster.lab.namespaces import processes
from cluster.lab.places import CLIENTS
from cluster.lab.up import bring_up, take_down
from cluster.progress import Progress
from cluster.settings import PROJECT_ROOT
from tests.bench.cpu import machine_busy_s, memory_bytes, spent
from tests.bench.paced import Plan, Seen
from tests.drills.balancer import balancer
from tests.drills.seen import BALANCER
from tests.drills.stage import Stage

PER_SECOND = 50.0
"""Turns, at all doors together."""
PER_NODE = 25.0
"""Turns at each node, where as many come to each however many serve."""
WINDOW_S = 12.0
"""How long each figure of a round is measured."""
_WHOLE_S = 60.0


class LoadFailed(Exception):
    """The load program did not do what was planned; carries what it said."""


@dataclass
class Latency:
    """One door and one way to ask, over all rounds. Milliseconds from the moment a question was due."""

    door: str
    stream: bool
    turns: int
    failures: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    first_p99_ms: float
    p99_by_round_ms: list[float]


@dataclass
class Window:
    """What the processes of the four nodes spent while users came to some doors, or to none."""

    round: int
    doors: list[str]
    per_second: float
    turns: int
    failures: int
    seconds: float
    cpu_s: dict[str, float]
    others_s: float
    """What the rest of this machine spent meanwhile, without the load program."""


def measure(rounds: int) -> dict[str, Any]:
    """Measure `rounds` times in a lab of its own; return what is known of it.

    Raises:
        LifecycleError: there can be no lab, or there is one already.
        NotReady: the lab does not become whole, or did not stay so.
        LoadFailed: the load program failed.
    """
    with _fresh_lab() as (lab, up_s), balancer(lab) as by_balancer:
        stage = Stage(lab, lambda what: print(f"  {what}", flush=True))
        generating = [name for name in lab.nodes if name != lab.cluster.head]
        stage.wait_until_whole(generating, _WHOLE_S)
        users = Users(lab)
        doors = stage.urls | {BALANCER: by_balancer}
        for stream in (False, True):
            users.come(doors, stream=stream, seconds=3)  # the first turn of a replica is not like the others
        seen: dict[bool, list[Seen]] = {False: [], True: []}
        windows = []
        for number in range(rounds):
            for stream in (False, True):
                seen[stream].append(users.come(doors, stream=stream, seconds=WINDOW_S))
                _say_latency(f"{number + 1}/{rounds}", seen[stream][-1], stream)
            for names, per_second in _serving(number, generating, lab.nodes):
                windows.append(_window(lab, users, number, names, per_second))
                _say_window(f"{number + 1}/{rounds}", windows[-1])
        stage.wait_until_whole(generating, _WHOLE_S)
        memory = memory_bytes(pid for node in lab.nodes for pid in processes(node))
    latencies = [asdict(_latency(door, stream, seen[stream])) for stream in (False, True) for door in doors]
    return {
        "per_second": PER_SECOND,
        "per_node": PER_NODE,
        "window_s": WINDOW_S,
        "up_s": up_s,
        "memory_bytes": memory,
        "latency": latencies,
        "cpu": [asdict(window) for window in windows],
    }


class Users:
    """Users in the clients' network; each call brings new ones."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._seeds = lab, count(1)

    def come(self, doors: dict[str, str], *, stream: bool, seconds: float, per_second: float = PER_SECOND) -> Seen:
        """Let users come to these doors for about so many seconds."""
        hosts = {name: url.removeprefix("http://") for name, url in doors.items()}
        turns = round(per_second * seconds / len(doors)) * len(doors)
        plan = orjson.dumps(Plan(hosts, turns, per_second, stream, next(self._seeds))).decode()
        command = self._lab.command(CLIENTS, [sys.executable, "-m", "tests.bench.paced", plan])
        try:
            done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, check=True, timeout=seconds + 60)
        except subprocess.CalledProcessError as error:
            raise LoadFailed(f"The load program failed: {error.stderr.decode(errors='replace').strip()[-500:]}") from error
        except subprocess.TimeoutExpired as error:
            raise LoadFailed(f"The load program did not end: {turns} turns took more than {seconds + 60:.0f} s.") from error
        return Seen(**orjson.loads(done.stdout))


@contextmanager
def _fresh_lab() -> Iterator[tuple[Lab, float]]:
    """Give a lab, and the seconds until all its nodes had answered."""
    begun = time.monotonic()
    bring_up(Progress(Console()))
    up_s = time.monotonic() - begun
    try:
        with Lab() as lab:
            yield lab, up_s
    finally:
        take_down()


def _serving(number: int, workers: list[str], nodes: list[str]) -> list[tuple[list[str], float]]:
    """Return the doors that serve in each window of a round, and the turns that come in all, beginning elsewhere each time.

    None, 1, 2 and 4 with the same turns in all; 1, 2 and 4 with the same turns for each: two serve the same both times.
    """
    assert PER_NODE * 2 == PER_SECOND
    first, second = workers[number % len(workers)], workers[(number + 1) % len(workers)]
    some = ([first], [first, second], nodes)
    cases = [([], 0.0), *((doors, PER_SECOND) for doors in some), ([first], PER_NODE), (nodes, PER_NODE * len(nodes))]
    start = number % len(cases)
    return cases[start:] + cases[:start]


def _window(lab: Lab, users: Users, number: int, names: list[str], per_second: float) -> Window:
    def nodes_spent() -> Any:
        return spent(pid for node in lab.nodes for pid in processes(node))

    before, busy, begun = nodes_spent(), machine_busy_s(), time.monotonic()
    seen = None
    if names:
        seen = users.come({name: lab.url(name) for name in names}, stream=False, seconds=WINDOW_S, per_second=per_second)
    else:
        time.sleep(WINDOW_S)  # what is measured is just this: nobody comes
    seconds, busy = time.monotonic() - begun, machine_busy_s() - busy
    cpu = {role: used for role, used in nodes_spent().since(before).items() if used > 0}
    others = max(0.0, busy - sum(cpu.values()) - (seen.cpu_s if seen else 0))
    turns = sum(map(len, seen.latencies.values())) if seen else 0
    return Window(number + 1, names, per_second, turns, sum(seen.failures.values()) if seen else 0, seconds, cpu, others)


def _latency(door: str, stream: bool, rounds: list[Seen]) -> Latency:
    each = [[seconds * 1e3 for seconds in seen.latencies[door]] for seen in rounds]
    every = [one for some in each for one in some]
    first = [seconds * 1e3 for seen in rounds for seconds in seen.first[door]]
    return Latency(
        door, stream, len(every), sum(seen.failures[door] for seen in rounds), quantile(every, 0.5), quantile(every, 0.99),
        max(every), quantile(first, 0.5), quantile(first, 0.99), [quantile(some, 0.99) for some in each],
    )  # fmt: skip


def quantile(values: list[float], q: float) -> float:
    """Return the value below which a share `q` of `values` lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _say_latency(place: str, seen: Seen, stream: bool) -> None:
    figures = seen.first if stream else seen.latencies
    doors = "  ".join(f"{d} {quantile(v, 0.5) * 1e3:.0f}/{quantile(v, 0.99) * 1e3:.0f}" for d, v in figures.items())
    what = "SSE, first piece" if stream else "whole reply"
    print(f"{place}  {what:17} p50/p99 ms: {doors}; failed {sum(seen.failures.values())}", flush=True)


def _say_window(place: str, window: Window) -> None:
    who = f"{len(window.doors)} serve {window.per_second:g}/s" if window.doors else "nobody comes"
    print(
        f"{place}  {who:17} {sum(window.cpu_s.values()) / window.seconds:.2f} cores, "
        f"others on this machine {window.others_s / window.seconds:.2f}; {window.turns} turns, failed {window.failures}",
        flush=True,
    )
