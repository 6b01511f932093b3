"""At a given rate: questions of users who know nothing of each other, and come whether the last one has its answer or not.

A program, as it must run in the network of the lab's clients: `python -m tests.bench.paced PLAN` prints what it saw as JSON.
Latencies count from the moment at which a question was due, so a system that falls behind cannot hide it.
"""

import asyncio
import dataclasses
import random
import sys
import time
from collections.abc import Sequence

import orjson

from tests.bench.http1 import answer, question
from tests.bench.load import CONVERSATION

_PATIENCE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Who asks whom, and how fast."""

    doors: dict[str, str]
    """HOST:PORT by name; the questions go to them in turn."""
    turns: int
    per_second: float
    """At all doors together. The time between two questions is random (exponential), as with many users."""
    stream: bool
    seed: int


@dataclasses.dataclass
class Seen:
    """What came of it. Latencies in seconds, by door; those of a stream to its end."""

    latencies: dict[str, list[float]]
    first: dict[str, list[float]]
    """Until the first piece of text; of a whole reply, until its first byte."""
    failures: dict[str, int]
    cpu_s: float = 0.0
    """What this program itself spent."""


class Door:
    """One door: keep-alive connections, each a client that begins a new conversation every `CONVERSATION` turns."""

    def __init__(self, host: str, prefix: str) -> None:
        self.host, self._prefix = host, prefix
        self._clients = 0
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, str, int]] = []

    async def ask(self, *, stream: bool, due: float) -> tuple[bool, float, float]:
        """Ask; return whether all went well, and the seconds from `due` to the end and to the first piece."""
        writer = None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer, client, left = self._idle.pop() if self._idle else (*await self._connect(), "", 0)
                if left == 0:
                    self._clients += 1
                    client, left = f"{self._prefix}_{self._clients}", CONVERSATION
                writer.write(question(self.host, client, stream=stream))
                got = await answer(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            if writer is not None:
                writer.close()
            return False, time.perf_counter() - due, time.perf_counter() - due
        self._idle.append((reader, writer, client, left - 1))
        return got.ok, time.perf_counter() - due, got.first - due

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.host.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def close(self) -> None:
        for _, writer, _, _ in self._idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer, _, _ in self._idle), return_exceptions=True)


async def run(plan: Plan) -> Seen:
    """Ask all that is planned, and wait for the answers."""
    seen = Seen({name: [] for name in plan.doors}, {name: [] for name in plan.doors}, dict.fromkeys(plan.doors, 0))
    doors = {name: Door(host, f"paced{plan.seed}_{name}") for name, host in plan.doors.items()}

    async def one(name: str, due: float) -> None:
        ok, end, first = await doors[name].ask(stream=plan.stream, due=due)
        seen.latencies[name].append(end)
        seen.first[name].append(first)
        seen.failures[name] += not ok

    chance, names = random.Random(plan.seed), list(plan.doors)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(plan.turns):
            due += chance.expovariate(plan.per_second)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(names[number % len(names)], due))
    await asyncio.gather(*(door.close() for door in doors.values()))
    seen.cpu_s = time.process_time()
    return seen


def main(arguments: Sequence[str]) -> None:
    """Do the plan, print what was seen."""
    sys.stdout.buffer.write(orjson.dumps(asyncio.run(run(Plan(**orjson.loads(arguments[0]))))))


if __name__ == "__main__":
    main(sys.argv[1:])
