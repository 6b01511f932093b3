"""What an adversarial reviewer broke once: WebSocket connections. Each test is one of its proofs, turned around."""

import asyncio
import contextlib

import pytest
from websockets.exceptions import ConnectionClosed

from serve_app.api.errors import close_code_of
from tests.support.clients import Device, check_whole
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.turn_tools import fall_due, store

pytestmark = pytest.mark.integration


async def test_who_asked_sees_the_answer_although_the_reply_that_it_was_kept_got_lost(redis_server: RedisProcess) -> None:
    async with (
        TcpProxy(redis_server.port) as proxy,
        Stack(proxy.url, bus_url=redis_server.url, patience_s=0.5) as here,
        Stack(redis_server.url, node="star"),
        store(redis_server.url) as at,
        here.serving() as url,
        Device(url, "ann", query="?stream=true") as asking,
    ):
        await asking.alive()
        proxy.swallow = lambda chunk: b"" if b"begun" in chunk else chunk
        await asking.chat("Hello", message_id="m1")
        refused = (await asking.until("error"))[-1]
        assert (refused["error"]["code"], refused["message_id"]) == ("store_unavailable", "m1")
        (turn,) = await at.turns.recent_turns("ann")
        assert turn.is_open, "the message was kept all the same"
        await fall_due(at, turn.turn_id)  # and so a sweep will find it
        frames = [frame for frame in await asking.until("done") if frame["type"] not in ("accepted", "queued")]
        assert {frame["turn_id"] for frame in frames} == {turn.turn_id}
        check_whole(frames)


async def test_who_floods_is_disconnected_also_at_a_pace_at_which_some_frames_pass(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        hearing = asyncio.create_task(until_closed(device))
        async with asyncio.timeout(4):
            with contextlib.suppress(ConnectionClosed):
                await flood(device)
            await hearing
        assert device.socket.close_code == close_code_of("too_many_frames")


async def flood(device: Device) -> None:
    """Send some hundred frames a second, for ever: more than are allowed, but now and then one that is."""
    while True:
        for _ in range(8):
            await device.send(type="ping")
        await asyncio.sleep(0.01)


async def until_closed(device: Device) -> None:
    """Read what comes, as any client does."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in device.socket:
            pass
