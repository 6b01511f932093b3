"""One machine: Aurora and the seed's own idea, measured in turns."""

import asyncio
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from tests.bench import load as generator
from tests.bench import starting
from tests.bench.cpu import spent

CASES = [(1, False, 300), (1, True, 300), (32, False, 3_000), (32, True, 3_000)]


@dataclass
class Round:
    """One system, one case, once."""

    system: str
    connections: int
    stream: bool
    turns: int
    rate: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    failures: int
    cpu_ms: dict[str, float]
    round_trips: float
    commands: float


class System:
    """Something that answers POST /api/chat, its processes and its Redis."""

    def __init__(self, name: str, port: int, redis_url: str, processes: "list[psutil.Process]") -> None:
        self.name, self.port, self.processes = name, port, processes
        self.redis = redis.Redis.from_url(redis_url, protocol=2, socket_timeout=10)

    def calls(self) -> tuple[int, int]:
        """Round trips (what clients sent) and commands (what Redis executed, in scripts too)."""
        stats = {name: int(entry["calls"]) for name, entry in self.redis.info("commandstats").items()}
        total = sum(stats.values())
        scripts = stats.get("cmdstat_evalsha", 0) + stats.get("cmdstat_eval", 0)
        if scripts == 0:
            return total, total
        sent = ("subscribe", "unsubscribe", "ping", "info", "client", "hello", "select", "auth")
        return scripts + sum(stats.get(f"cmdstat_{name}", 0) for name in sent), total

    def measure(self, connections: int, stream: bool, turns: int) -> Round:
        pids = [process.pid for process in self.processes]
        before, calls = spent(pids), self.calls()
        result = asyncio.run(
            generator.run(self.port, connections=connections, turns=turns, stream=stream, prefix=f"bench{time.time_ns()}")
        )
        cpu, later = {role: seconds / turns * 1e3 for role, seconds in spent(pids).since(before).items()}, self.calls()
        return Round(
            self.name, connections, stream, turns, result.rate, result.quantile(0.5) * 1e3, result.quantile(0.99) * 1e3,
            statistics.median(result.first) * 1e3, result.failures, {k: v for k, v in cpu.items() if v >= 0.005},
            (later[0] - calls[0]) / turns, (later[1] - calls[1]) / turns,
        )  # fmt: skip


def measure(count: int) -> list[dict[str, Any]]:
    """Measure every case of both systems `count` times, and return the rounds."""
    rounds: list[Round] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aurora-bench-")))
        print("Starting Aurora and the comparison ...", flush=True)
        systems = [
            System("aurora", *starting.aurora(stack, folder / "home", "--config", "configs/local.yaml")),
            System("one process", *starting.one_process(stack, folder / "redis")),
        ]
        for system in systems:
            system.measure(8, False, 300)
        for number in range(count):
            for connections, stream, turns in CASES:
                for system in systems if number % 2 == 0 else reversed(systems):
                    one = system.measure(connections, stream, turns)
                    rounds.append(one)
                    kind = "SSE" if stream else "whole"
                    print(
                        f"{number + 1}/{count}  {system.name:12} {connections:3} connections {kind:6} "
                        f"{one.rate:7.0f} turns/s  p50 {one.p50_ms:6.1f} ms  p99 {one.p99_ms:6.1f} ms  "
                        f"CPU {sum(one.cpu_ms.values()):5.2f} ms/turn",
                        flush=True,
                    )
    return [asdict(one) for one in rounds]
