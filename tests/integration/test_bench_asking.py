"""The load program and the stand-in of `make bench`, with and without each other: a reply counts when all its tokens came."""

import asyncio
from collections.abc import AsyncIterator

import ollama
import pytest

from tests.bench.asking import Dialect, Result, run
from tests.bench.fast_ollama import MODEL, Connection, Pace
from tests.bench.one_ollama import as_ollama
from tests.support.door import Serve, door

pytestmark = pytest.mark.integration
OLLAMA = Dialect("/api/chat", as_ollama, b'"done":true')


@pytest.fixture
async def standin() -> AsyncIterator[tuple[int, Pace]]:
    pace = Pace()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pace), "127.0.0.1")
    async with server:
        yield server.sockets[0].getsockname()[1], pace


async def asked(port: int, *, stream: bool, dialect: Dialect = OLLAMA) -> Result:
    return await run(port, dialect, connections=2, tokens=20, stream=stream, seconds=0.2, prefix="test")


async def answering(answer: Serve) -> Result:
    """Ask somebody who answers so, for streams."""

    async with door(answer) as address:
        return await asked(int(address.rpartition(":")[2]), stream=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_replies_with_all_their_tokens_count(standin: tuple[int, Pace], stream: bool) -> None:
    result = await asked(standin[0], stream=stream)
    assert result.turns > 0
    assert result.failures == 0
    assert len(result.latencies) == result.turns
    assert len(result.first) == (result.turns if stream else 0)


async def test_a_reply_with_too_few_tokens_or_without_its_end_is_a_failure() -> None:
    async def lacks_one(writer: asyncio.StreamWriter) -> None:
        said = b" gull" * 19 + b'"done":true'
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(said), said))

    async def lacks_its_end(writer: asyncio.StreamWriter) -> None:
        said = b" gull" * 20
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(said), said))

    async def breaks(writer: asyncio.StreamWriter) -> None:
        writer.close()

    for answer in (lacks_one, lacks_its_end, breaks):
        result = await answering(answer)
        assert result.turns == 0
        assert result.failures > 0


async def test_a_token_cut_in_two_by_chunks_counts() -> None:
    async def cuts(writer: asyncio.StreamWriter) -> None:
        said = b" gull" * 20 + b'"done":true'
        parts = [said[at : at + 7] for at in range(0, len(said), 7)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")

    result = await answering(cuts)
    assert result.turns > 0
    assert result.failures == 0


async def test_the_stand_in_speaks_to_the_ollama_client_as_many_tokens_as_it_is_asked_for(standin: tuple[int, Pace]) -> None:
    client = ollama.AsyncClient(host=f"http://127.0.0.1:{standin[0]}", trust_env=False)
    messages = [{"role": "user", "content": "Hello!"}]
    whole = await client.chat(MODEL, messages, options={"num_predict": 300})
    parts = [part async for part in await client.chat(MODEL, messages, options={"num_predict": 300}, stream=True)]
    assert len(parts) == 301
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count == 300
    await client.close()  # type: ignore[no-untyped-call]


async def test_at_a_pace_each_token_comes_by_itself(standin: tuple[int, Pace]) -> None:
    port, pace = standin
    pace.tokens_per_second = 200
    result = await asked(port, stream=True)
    assert result.failures == 0
    assert min(result.latencies) >= 0.09
    assert min(result.first) < 0.1
