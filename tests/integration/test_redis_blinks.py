"""Redis may blink: whatever it does in the middle of an answer, the follower ends with exactly the undisturbed text (law 9)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.events import Event
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.turn_tools import Assembled, Published, ends_in, new_turn, store, undisturbed
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
MESSAGE = "Tell me about the sea"
TWO_SECONDS = Options(words=400, words_per_second=200)
FOUR_SECONDS = Options(words=800, words_per_second=200)

Blink = Callable[[RedisProcess, Stack], Awaitable[None]]


async def frozen_for_five_seconds(server: RedisProcess, stack: Stack) -> None:
    server.freeze()
    await asyncio.sleep(5)  # the length of the blink is the subject
    server.thaw()


async def killed_and_restarted(server: RedisProcess, stack: Stack) -> None:
    server.kill()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)


async def scripts_forgotten(server: RedisProcess, stack: Stack) -> None:
    for _ in range(5):
        await asyncio.sleep(0.1)
        await stack.redis.script_flush()


async def a_replica_for_a_second(server: RedisProcess, stack: Stack) -> None:
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(1)
        client.execute_command("REPLICAOF", "NO", "ONE")


async def out_of_memory_for_a_second(server: RedisProcess, stack: Stack) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1")
        await asyncio.sleep(1)
        client.config_set("maxmemory", "0")


@pytest.mark.parametrize(
    "blink",
    [frozen_for_five_seconds, killed_and_restarted, scripts_forgotten, a_replica_for_a_second, out_of_memory_for_a_second],
)
async def test_an_answer_is_whole_although_redis_blinked(own_redis: RedisProcess, blink: Blink) -> None:
    async with Stack(own_redis.url) as stack:
        ask = Ask(client_id="ann", message=MESSAGE, options=FOUR_SECONDS)
        async with Listening(stack.service.ask(ask)) as heard:
            await heard.pieces(3)
            before = heard.said()
            await blink(own_redis, stack)
            events = await heard.end()
        assert before < heard.said(), "it happened in the middle of the answer"
        await assert_whole(stack, events, MESSAGE, FOUR_SECONDS)


@pytest.mark.parametrize("where", ["commands", "bus", "both"])
async def test_an_answer_is_whole_although_every_connection_was_cut_many_times(redis_server: RedisProcess, where: str) -> None:
    async with contextlib.AsyncExitStack() as exits:
        published = exits.enter_context(Published(redis_server))
        commands = await exits.enter_async_context(TcpProxy(redis_server.port))
        bus = await exits.enter_async_context(TcpProxy(redis_server.port))
        stack = await exits.enter_async_context(Stack(commands.url, bus_url=bus.url))
        proxies = {"commands": [commands], "bus": [bus], "both": [commands, bus]}[where]
        ask = Ask(client_id="ann", message=MESSAGE, options=TWO_SECONDS)
        async with Listening(stack.service.ask(ask)) as heard:
            for cuts in range(1, 16):
                await heard.pieces(3 * cuts)
                for proxy in proxies:
                    proxy.cut()
            events = await heard.end()
        await assert_whole(stack, events, MESSAGE, TWO_SECONDS)
        assert len(ends_in(published.drain(), events[0].turn_id)) == 1


async def test_a_reply_of_redis_that_is_lost_is_no_write_that_is_lost(redis_server: RedisProcess) -> None:
    """Every few writes the connection breaks after Redis has done what it was told and before it could say so."""
    async with TcpProxy(redis_server.port) as proxy, Stack(proxy.url, bus_url=redis_server.url) as stack:
        replies = 0

        def lose_some(chunk: bytes) -> bytes:
            nonlocal replies
            replies += 1
            if replies % 4:
                return chunk
            proxy.cut()
            return b""

        with Published(redis_server) as published:
            proxy.swallow = lose_some
            ask = Ask(client_id="ann", message=MESSAGE, options=TWO_SECONDS, idempotency_key="k")
            async with Listening(stack.service.ask(ask)) as heard:
                events = await heard.end()
            proxy.swallow = lambda chunk: chunk
            told = published.drain()
        await assert_whole(stack, events, MESSAGE, TWO_SECONDS)
        assert proxy.swallowed, "some replies were lost"
        assert len(ends_in(told, events[0].turn_id)) == 1
        seqs = [
            event["seq"]
            for channel, batch in told
            if channel == "aurora:client:ann"
            for event in batch
            if event["type"] == "piece"
        ]
        assert seqs == list(range(1, len(seqs) + 1)), "nothing was published twice"


async def test_while_redis_is_frozen_an_engine_goes_on_and_is_not_taken_over(own_redis: RedisProcess) -> None:
    async with Stack(own_redis.url) as stack:
        ask = Ask(client_id="ann", message=MESSAGE, options=FOUR_SECONDS)
        async with Listening(stack.service.ask(ask)) as heard:
            await heard.pieces(3)
            await frozen_for_five_seconds(own_redis, stack)
            events = await heard.end()
        assert [event.type for event in events if event.type == "takeover"] == []
        assert (await stack.turns.read(events[0].turn_id)).attempt == 1


async def test_a_frozen_redis_takes_nothing_from_a_conversation_that_was_kept(own_redis: RedisProcess) -> None:
    async with Stack(own_redis.url) as stack:
        async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE))) as heard:
            events = await heard.end()
        await killed_and_restarted(own_redis, stack)
        again = await stack.service.turn(events[0].turn_id)
        assert again.reply is not None
        assert again.reply.content == Assembled.of(events).text


@pytest.fixture
async def impatient(own_redis: RedisProcess) -> AsyncIterator[Stack]:
    async with Stack(own_redis.url, patience_s=0.3) as stack:
        yield stack


async def test_a_message_is_refused_as_retryable_where_redis_stays_away(
    own_redis: RedisProcess, impatient: Stack, tmp_path: Path
) -> None:
    own_redis.kill()
    with pytest.raises(StoreUnavailable) as refused:
        await impatient.service.begin(Ask(client_id="ann", message=MESSAGE))
    assert refused.value.retryable


@pytest.mark.parametrize("refusal", ["READONLY", "OOM"])
async def test_what_a_redis_that_takes_no_writes_says_is_away_and_not_a_bug(own_redis: RedisProcess, refusal: str) -> None:
    """Redis before 7 wraps the refusal in an error of the script."""
    with own_redis.client() as client:
        if refusal == "OOM":
            client.config_set("maxmemory", "1")
        else:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
        async with store(own_redis.url) as at:
            begins = asyncio.create_task(at.turns.begin(new_turn()))
            await until(lambda: at.scripts.away.since is not None or begins.done())
            assert not begins.done(), "it waits for Redis to come back"
            client.config_set("maxmemory", "0")
            client.execute_command("REPLICAOF", "NO", "ONE")
            assert not (await begins).attached


async def assert_whole(stack: Stack, events: list[Event], message: str, options: Options) -> None:
    """One end, proven by its receipt; one stored reply; the text that is said when nothing happens."""
    said = Assembled.of(events)
    assert said.end is not None
    assert said.end.type == "done"
    assert said.proven()
    assert said.text == await undisturbed(message, options)
    page = await stack.service.history(said.end.conversation_id, limit=10)
    assert [(m.role, m.content) for m in page.messages] == [("user", message), ("assistant", said.text)]
