"""As fast as it goes, for a while, in the dialect of whoever is asked; every answer is checked for all of its tokens.

Cheaper per piece than `tests.bench.load`: a reply of 300 tokens in 300 chunks must not be the load generator's work.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.bench.fast_ollama import TOKEN
from tests.bench.load import CONVERSATION

PATIENCE_S = 60.0
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Dialect:
    """How a kind of server is asked for so many tokens, and how often a stream of its holds each of them."""

    path: str
    body: Callable[[str, int, bool], dict[str, Any]]
    """Of a client's name, the number of tokens, and whether they are to be streamed."""
    end: bytes
    """What a stream holds only when it came to its end."""
    copies: int = 1

    def question(self, port: int, client: str, tokens: int, *, stream: bool) -> bytes:
        body = orjson.dumps(self.body(client, tokens, stream))
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def is_whole(self, answer: "Answer", tokens: int, *, stream: bool) -> bool:
        """Whether the answer is a good one with all tokens in it."""
        if answer.status != 200 or (stream and self.end not in answer.body):
            return False
        return answer.body.count(TOKEN) == tokens * (self.copies if stream else 1)


@dataclass(frozen=True)
class Answer:
    """One response. `first` is when its first token was there, on `time.perf_counter`."""

    status: int
    body: bytes
    first: float


@dataclass
class Result:
    """What one run measured. Latencies in seconds, those to the first token of streams only."""

    turns: int = 0
    failures: int = 0
    problem: str = ""
    """What was wrong the first time."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """What the load generator spent."""
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.turns / self.seconds

    def fail(self, problem: str) -> None:
        self.failures += 1
        self.problem = self.problem or problem

    def quantile(self, q: float) -> float:
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def first_p50(self) -> float:
        return statistics.median(self.first) if self.first else 0.0


async def run(port: int, dialect: Dialect, *, connections: int, tokens: int, stream: bool, seconds: float, prefix: str) -> Result:
    """Ask over `connections` keep-alive connections, each again as soon as it has its answer, until `seconds` are over.

    Each connection is a new client, with a new conversation, every `CONVERSATION` turns. `turns` are those with a whole answer;
    what has not come after `PATIENCE_S` is a failure, as is a connection that breaks.
    """
    result = Result()
    begun, spent = time.perf_counter(), time.process_time()

    async def one(number: int) -> None:
        asked = 0
        while time.perf_counter() - begun < seconds:
            writer = None
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**18)
                while time.perf_counter() - begun < seconds:
                    client = f"{prefix}_{number}_{asked // CONVERSATION}"
                    asked += 1
                    request = dialect.question(port, client, tokens, stream=stream)
                    at = time.perf_counter()
                    async with asyncio.timeout(PATIENCE_S):
                        writer.write(request)
                        got = await answer(reader)
                    took = time.perf_counter() - at
                    if not dialect.is_whole(got, tokens, stream=stream):
                        result.fail(f"{got.status}, {got.body.count(TOKEN)} tokens, … {got.body[-200:].decode(errors='replace')}")
                        continue
                    result.turns += 1
                    result.latencies.append(took)
                    if stream:
                        result.first.append(got.first - at)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                result.fail(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.05)
            finally:
                if writer is not None:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

    await asyncio.gather(*(one(n) for n in range(connections)))
    result.seconds, result.cpu_s = time.perf_counter() - begun, time.process_time() - spent
    return result


async def answer(reader: asyncio.StreamReader) -> Answer:
    """Read one response to its end, in reads as large as they come.

    Raises:
        asyncio.IncompleteReadError: the connection ended before it.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    low, data, first = head.lower(), bytearray(), 0.0
    chunked = b"content-length:" not in low
    size = 0 if chunked else int(low.split(b"content-length:")[1].split(b"\r\n")[0])
    while not (data.endswith(_LAST_CHUNK) or data == _LAST_CHUNK[2:]) if chunked else len(data) < size:
        if not (read := await reader.read(2**18)):
            raise asyncio.IncompleteReadError(bytes(data), None)
        data += read
        if not first and TOKEN in data:
            first = time.perf_counter()
    return Answer(int(head[9:12]), _joined(bytes(data)) if chunked else bytes(data), first or time.perf_counter())


def _joined(data: bytes) -> bytes:
    """Return the content of chunks; proxies cut them where they like, also inside a token."""
    parts, at = [], 0
    while (end := data.index(b"\r\n", at)) and (size := int(data[at:end], 16)):
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(parts)
