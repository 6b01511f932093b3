"""A question to POST /api/chat and its answer as bytes of HTTP/1.1: all that a load generator needs, so that it costs little."""

import asyncio
import time
from typing import NamedTuple

import orjson

_LONGEST_MARK = len(b"event: piece")


class Answer(NamedTuple):
    """How one question was answered."""

    ok: bool
    """200; of a stream also: it ended with `done`."""
    first: float
    """When its first piece of text was there, on `time.perf_counter`."""


def question(host: str, client: str, *, stream: bool, words: int = 20) -> bytes:
    """Return a question of `client` for an answer of so many words."""
    body: dict[str, object] = {
        "message": "How are you today?", "personality": "robbie", "client_id": client, "options": {"words": words},
    }  # fmt: skip
    if stream:
        body["stream"] = True
    data = orjson.dumps(body)
    head = f"POST /api/chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def answer(reader: asyncio.StreamReader) -> Answer:
    """Read one response to its end.

    Raises:
        asyncio.IncompleteReadError: the connection ended before it.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    well, first = int(head[9:12]) == 200, time.perf_counter()
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return Answer(well, first)
    begun = done = False
    tail = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        tail += await reader.readexactly(size + 2)
        if not begun and b"event: piece" in tail:
            begun, first = True, time.perf_counter()
        done = done or b"event: done" in tail
        if size == 0:
            return Answer(well and done, first)
        tail = tail[-_LONGEST_MARK - 2 :].removesuffix(b"\r\n")  # proxies cut streams where they like, also inside a word
