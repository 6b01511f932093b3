"""The load programs of `make bench`: what they count as answered, and from when."""

import asyncio

import pytest

from tests.bench.http1 import answer
from tests.bench.paced import Plan, run
from tests.support.door import door

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

pytestmark = pytest.mark.integration


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(WHOLE)


async def read(*parts: bytes) -> bool:
    reader = asyncio.StreamReader()
    reader.feed_data(STREAM + b"".join(map(chunk, parts)) + chunk(b""))
    return (await answer(reader)).ok


async def test_questions_are_spread_evenly_over_the_doors() -> None:
    async with door(whole) as one, door(whole) as other:
        seen = await run(Plan({"one": one, "other": other}, turns=40, per_second=1_000, stream=False, seed=1))
    assert {name: len(each) for name, each in seen.latencies.items()} == {"one": 20, "other": 20}
    assert seen.failures == {"one": 0, "other": 0}


async def test_a_door_that_stands_still_delays_every_question_that_is_due_meanwhile() -> None:
    begun = asyncio.get_running_loop().time()

    async def stands_still(writer: asyncio.StreamWriter) -> None:
        """Let nothing out in the first half second, to anybody."""
        await asyncio.sleep(max(0.0, begun + 0.5 - asyncio.get_running_loop().time()))
        await whole(writer)

    async with door(stands_still) as one:
        seen = await run(Plan({"one": one}, turns=40, per_second=200, stream=False, seed=1))
    assert sum(latency > 0.2 for latency in seen.latencies["one"]) > 20


async def test_a_refusal_a_cut_connection_and_a_dead_door_are_failures() -> None:
    async def refuses(writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE.replace(b"200 OK", b"503 Service Unavailable"))

    async def cuts(writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE[:-1])
        writer.close()

    async with door(whole) as dead:
        pass
    async with door(refuses) as busy, door(cuts) as cut:
        doors = {"busy": busy, "cut": cut, "dead": dead}
        seen = await run(Plan(doors, turns=9, per_second=1_000, stream=False, seed=1))
    assert seen.failures == {"busy": 3, "cut": 3, "dead": 3}


async def test_a_stream_is_answered_when_it_ends_with_done_wherever_it_is_cut() -> None:
    assert await read(b"event: piece\ndata: {}\n\n", b"event: done\ndata: {}\n\n")
    assert await read(b"event: piece\ndata: {}\n\neve", b"nt: do", b"ne\ndata: {}\n\n")


async def test_a_stream_that_ends_otherwise_is_a_failure() -> None:
    assert not await read(b"event: piece\ndata: {}\n\n", b"event: failed\ndata: {}\n\n")
    assert not await read(b"event: piece\ndata: {}\n\n")
