"""A load generator that costs little itself: HTTP/1.1 over plain sockets, one task per connection, bounded in count."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import orjson

CONVERSATION = 10
"""Turns of one conversation."""


@dataclass
class Result:
    """What one run measured. Latencies in seconds, sorted."""

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


def _request(host: str, body: dict[str, object]) -> bytes:
    data = orjson.dumps(body)
    head = f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def _answer(reader: asyncio.StreamReader) -> tuple[int, float]:
    """Read one response to its end; return its status and when its first piece of text was there."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    lower = head.lower()
    first = time.perf_counter()
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return status, first
    seen = False
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        chunk = await reader.readexactly(size + 2)
        if not seen and b"event: piece" in chunk:
            seen, first = True, time.perf_counter()
        if size == 0:
            return status, first


async def run(port: int, *, connections: int, turns: int, stream: bool, words: int = 20, prefix: str = "bench") -> Result:
    """Ask `turns` questions over `connections` keep-alive connections; 20-token instant replies.

    Each connection is a new client, with a new conversation, every `CONVERSATION` turns.
    """
    result = Result(turns=0, seconds=0)
    left = turns

    async def one(number: int) -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body: dict[str, object] = {"message": "How are you today?", "personality": "robbie", "options": {"words": words}}
        if stream:
            body["stream"] = True
        asked = 0
        try:
            while left > 0:
                left -= 1
                if asked % CONVERSATION == 0:
                    request = _request(f"127.0.0.1:{port}", {**body, "client_id": f"{prefix}_{number}_{asked}"})
                asked += 1
                begun = time.perf_counter()
                writer.write(request)
                status, first = await _answer(reader)
                result.latencies.append(time.perf_counter() - begun)
                result.first.append(first - begun)
                result.turns += 1
                result.failures += status != 200
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    begun = time.perf_counter()
    await asyncio.gather(*(one(n) for n in range(connections)))
    result.seconds = time.perf_counter() - begun
    return result
