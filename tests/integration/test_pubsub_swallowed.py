"""Pub/sub may swallow any message, and its connection may die in silence: the answer is whole all the same, only slower."""

import time
from collections.abc import AsyncIterator

import pytest

from serve_app.chat.follow import SILENCE_S
from serve_app.chat.inbox import LIMIT
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.state.bus import CONFIRM_WITHIN_S, DEAD_AFTER_S, PING_EVERY_S
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.turn_tools import Assembled, claim, ending, logged, new_turn, undisturbed
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
MESSAGE = "Tell me about the sea"
ONE_SECOND = Options(words=200, words_per_second=200)


@pytest.fixture
async def proxy(redis_server: RedisProcess) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(redis_server.port) as between:
        yield between


@pytest.fixture
async def stack(redis_server: RedisProcess, proxy: TcpProxy) -> AsyncIterator[Stack]:
    """A node whose bus goes through the proxy."""
    async with Stack(redis_server.url, bus_url=proxy.url) as running:
        yield running


async def test_a_follower_ends_within_three_seconds_where_the_message_with_the_end_is_swallowed(
    stack: Stack, proxy: TcpProxy
) -> None:
    proxy.swallow = lambda chunk: b"" if b'"type":"done"' in chunk else chunk
    ask = Ask(client_id="ann", message=MESSAGE, options=ONE_SECOND)
    async with Listening(stack.service.ask(ask)) as heard:
        turn_id = (await heard.first("accepted")).turn_id

        async def ended() -> bool:
            return (await stack.turns.read(turn_id)).end is not None

        await until(ended)
        over = time.monotonic()
        events = await heard.end(3)
        took = time.monotonic() - over
    assert proxy.swallowed, "the end was on its way and did not arrive"
    assert took < 3
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == await undisturbed(MESSAGE, ONE_SECOND)


async def test_an_answer_is_whole_where_pub_sub_says_nothing_at_all(stack: Stack, proxy: TcpProxy) -> None:
    proxy.swallow = lambda chunk: b"" if b"message" in chunk else chunk
    ask = Ask(client_id="ann", message=MESSAGE, options=ONE_SECOND)
    async with Listening(stack.service.ask(ask)) as heard:
        events = await heard.end(1 + 2 * SILENCE_S + 1)
    assert proxy.swallowed
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == await undisturbed(MESSAGE, ONE_SECOND)


@pytest.mark.parametrize("every", [2, 3, 5])
async def test_an_answer_is_whole_where_pub_sub_loses_every_few_messages(stack: Stack, proxy: TcpProxy, every: int) -> None:
    chunks = 0

    def lose_some(chunk: bytes) -> bytes:
        nonlocal chunks
        chunks += b"message" in chunk
        return b"" if b"message" in chunk and chunks % every == 0 else chunk

    proxy.swallow = lose_some
    async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=ONE_SECOND))) as heard:
        events = await heard.end()
    assert proxy.swallowed
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == await undisturbed(MESSAGE, ONE_SECOND)


async def test_where_redis_never_confirms_a_subscription_the_log_is_read(stack: Stack, proxy: TcpProxy) -> None:
    proxy.swallow = lambda chunk: b"" if b"subscribe" in chunk or b"message" in chunk else chunk
    begun = time.monotonic()
    async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE))) as heard:
        events = await heard.end(CONFIRM_WITHIN_S + SILENCE_S + 2)
    assert Assembled.of(events).proven()
    assert time.monotonic() - begun >= CONFIRM_WITHIN_S


@pytest.mark.parametrize("dead", [1, 2], ids=["the connection", "and the one after it"])
async def test_a_connection_that_died_in_silence_is_noticed_and_made_anew(
    redis_server: RedisProcess, stack: Stack, proxy: TcpProxy, dead: int
) -> None:
    """A host that freezes, and is replaced, accepts connections, says nothing, and never closes them."""
    async with stack.bus.listen("ann") as live, TcpProxy(redis_server.port) as alive:
        proxy.stall()
        await until(lambda: proxy.accepted >= dead, DEAD_AFTER_S + 2 * PING_EVERY_S)
        noticed = time.monotonic() + DEAD_AFTER_S + 2 * PING_EVERY_S
        stack.bus_redis.connection_pool.connection_kwargs["port"] = alive.port  # the name leads to another host now
        assert await live.next(20) is None, "the listener is told that it may have missed something"
        assert time.monotonic() < noticed
        new = new_turn(client_id="ann")
        await stack.turns.begin(new)
        batch = await live.next(1)
        assert batch is not None
        assert batch[0].turn_id == new.turn_id


async def test_a_listener_that_reads_too_slowly_reads_the_log_and_misses_nothing(stack: Stack) -> None:
    new = new_turn(client_id="ann")
    texts = [f"{number} " for number in range(1, LIMIT + 101)]
    async with stack.bus.listen("ann") as live, stack.bus.listen("ann") as quick:
        await stack.turns.begin(new)
        await claim(stack, new.turn_id, new.token, "r")
        events = stack.service.follow_live(new.turn_id, live, fresh=True)
        heard = [await anext(events)]  # and then it does not read for a while
        for seq, text in enumerate(texts):
            await stack.turns.append(new.turn_id, token="r", pieces=logged([text], after=seq))
        await stack.turns.finish(new.turn_id, token="r", end=ending(new.turn_id, texts), from_seq=len(texts) + 1)
        last = None
        while last != "done":  # everything has been delivered to the listeners
            batch = await quick.next(2)
            last = batch[-1].type if batch else last
            last = last if batch else "done"
        heard += [event async for event in events]
    said = Assembled.of(heard)
    assert said.proven()
    assert said.texts == texts
