"""As fast as it goes: a bounded number of connections, each asking again as soon as it has its answer."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from tests.bench.http1 import answer, question

CONVERSATION = 10
"""Turns of one conversation."""


@dataclass
class Result:
    """What one run measured. Latencies in seconds."""

    turns: int
    seconds: float
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def rate(self) -> float:
        return self.turns / self.seconds

    def quantile(self, q: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def run(port: int, *, connections: int, turns: int, stream: bool, words: int = 20, prefix: str = "bench") -> Result:
    """Ask `turns` questions over `connections` keep-alive connections; 20-token instant replies.

    Each connection is a new client, with a new conversation, every `CONVERSATION` turns.
    """
    result = Result(turns=0, seconds=0)
    left = turns

    async def one(number: int) -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = 0
        try:
            while left > 0:
                left -= 1
                if asked % CONVERSATION == 0:
                    request = question(f"127.0.0.1:{port}", f"{prefix}_{number}_{asked}", stream=stream, words=words)
                asked += 1
                begun = time.perf_counter()
                writer.write(request)
                got = await answer(reader)
                result.latencies.append(time.perf_counter() - begun)
                result.first.append(got.first - begun)
                result.turns += 1
                result.failures += not got.ok
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    begun = time.perf_counter()
    await asyncio.gather(*(one(n) for n in range(connections)))
    result.seconds = time.perf_counter() - begun
    return result
