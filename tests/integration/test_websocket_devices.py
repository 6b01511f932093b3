"""Several connections of one client, on several nodes; slow ones; and one through which nothing is read."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.websockets import WebSocket

from serve_app.api.access import Access
from serve_app.api.websocket import Connection
from serve_app.chat.events import Piece
from serve_app.chat.inbox import LIMIT
from tests.support.clients import ENDS, Device, Frame, all_sse, check_whole, paced
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import ending, logged, new_turn, plan
from tests.support.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def nodes(stack: Stack, redis_server: RedisProcess) -> AsyncIterator[tuple[str, str]]:
    """The addresses of two nodes, aurora and star, over one Redis."""
    async with Stack(redis_server.url, node="star") as star, stack.serving() as here, star.serving() as there:
        yield here, there


async def test_devices_on_two_nodes_see_a_turn_of_either_live_and_equal(nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann", query="?stream=true") as laptop, Device(there, "ann", query="?stream=true") as phone:
        await asyncio.gather(laptop.alive(), phone.alive())
        for speaker, node in ((laptop, "aurora"), (phone, "star")):
            await speaker.chat("Hello", options=paced(40, 60))
            seen = await asyncio.gather(laptop.until("done"), phone.until("done"))
            assert [[f for f in frames if f["type"] != "accepted"] for frames in seen[1:]] == [
                [f for f in seen[0] if f["type"] != "accepted"]
            ]
            for frames in seen:
                assert frames[0]["type"] == "accepted"
                assert (frames[0]["content"], frames[0]["node"]) == ("Hello", node)
                assert len(check_whole(frames).split()) == 40
                assert frames[-1]["node"] == node
        assert await laptop.alive() == await phone.alive() == []


async def test_the_other_device_sees_pieces_before_the_answer_has_ended(nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann", query="?stream=true") as laptop, Device(there, "ann", query="?stream=true") as phone:
        await phone.alive()
        await laptop.chat("Hello", options=paced(2_000, 100))
        turn = (await phone.until("piece"))[0]["turn_id"]
        await phone.send(type="stop", turn_id=turn)
        ends = await asyncio.gather(laptop.until(*ENDS), phone.until(*ENDS))
        assert ends[0][-1] == ends[1][-1]
        assert ends[0][-1]["type"] == "stopped"


async def test_a_turn_begun_by_rest_is_seen_by_streaming_and_seeds_devices(nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann", query="?stream=true") as streaming, Device(there, "ann") as seeds:
        await asyncio.gather(streaming.alive(), seeds.alive())
        async with httpx.AsyncClient(base_url=there, timeout=20) as http:
            body = {"client_id": "ann", "message": "Hello", "stream": True, "options": paced(40, 100)}
            told = [e.data for e in await all_sse(http, "POST", "/api/chat", json=body)]
        frames, end = await streaming.until("done"), await seeds.next()
        assert check_whole(frames) == check_whole(told) == end["content"]
        assert frames[-1] == told[-1] == end
        assert await seeds.alive() == []


async def test_somebody_elses_devices_see_nothing(nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann") as ann, Device(there, "bob", query="?stream=true") as bob:
        await bob.alive()
        await ann.chat("Hello")
        await ann.next()
        assert await bob.alive() == []


async def test_two_turns_at_once_reach_every_device_whole(nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann", query="?stream=true") as laptop, Device(there, "ann", query="?stream=true") as phone:
        await asyncio.gather(laptop.alive(), phone.alive())
        await laptop.chat("Hello", personality="robbie", options=paced(40, 60))
        await phone.chat("Hello", personality="kristina", options=paced(40, 80))
        for device in (laptop, phone):
            turns: dict[str, list[Frame]] = {}
            ended = 0
            while ended < 2:
                frame = await device.next()
                turns.setdefault(frame["turn_id"], []).append(frame)
                ended += frame["type"] in ENDS
            assert len(turns) == 2
            for frames in turns.values():
                check_whole(frames)


async def test_a_slow_reader_holds_up_nobody_and_ends_whole(nodes: tuple[str, str]) -> None:
    here, there = nodes
    small = {"max_queue": 1}
    async with (
        Device(here, "ann", query="?stream=true", **small) as slow,
        Device(here, "ann", query="?stream=true") as quick,
        Device(there, "ann", query="?stream=true") as other,
    ):
        await asyncio.gather(slow.alive(), quick.alive(), other.alive())
        slow.socket.transport.pause_reading()
        await quick.chat("Hello", options=paced(3_000, 1_500))
        seen = await asyncio.gather(quick.until("done"), other.until("done"))
        assert check_whole(seen[0]) == check_whole(seen[1])
        slow.socket.transport.resume_reading()
        assert check_whole(await slow.until("done")) == seen[0][-1]["content"]


async def test_a_connection_that_takes_nothing_keeps_no_more_than_its_queues_and_then_ends_whole(stack: Stack) -> None:
    texts = [f"word{n} " for n in range(1_200)]
    sent: list[Frame] = []
    flows = asyncio.Event()
    came: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "websocket.send":
            if len(sent) == 3:
                await flows.wait()
            sent.append(json.loads(str(message["text"])))

    came.put_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/ws/ann", "headers": [], "query_string": b""}
    connection = Connection(WebSocket(scope, came.get, send), stack.service, Access())  # type: ignore[arg-type]
    serving = asyncio.create_task(connection.serve("ann", stream=True))
    try:
        new = new_turn(client_id="ann")
        begun = await stack.turns.begin(new)
        await stack.turns.claim(new.turn_id, dispatch=new.token, run="run", node="aurora", plan=plan(), window=9)
        for piece in logged(texts):
            await stack.turns.append(new.turn_id, token="run", pieces=[piece])
        assert len(sent) == 3
        gc.collect()
        held = sum(isinstance(o, Piece) for o in gc.get_objects())
        assert held <= 2 * LIMIT + 50, "the events of a stuck connection pile up"
        end = ending(new.turn_id, texts, conversation_id=begun.conversation_id)
        await stack.turns.finish(new.turn_id, token="run", end=end, from_seq=len(texts) + 1)
        flows.set()
        await until(lambda: sent[-1]["type"] in ENDS, 20)
        assert check_whole(sent) == "".join(texts)
    finally:
        flows.set()
        came.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await serving


async def test_clients_that_vanish_while_they_are_sent_to_leave_no_task_and_no_error(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    async with stack.serving() as url:
        async with Device(url, "ann") as device:
            await device.chat("Hello", options=paced(150, 60))
            await device.alive()
        before = len(asyncio.all_tasks())
        for _ in range(5):
            async with Device(url, "ann", query="?stream=true") as device:
                await device.until("piece")
                device.socket.transport.abort()
        await until(lambda: len(asyncio.all_tasks()) <= before, 15)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []
