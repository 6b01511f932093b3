"""The crowd of the drills at two nodes in one process: what it writes down is enough to find every answer right, or wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.server import ServerConnection, serve

from serve_app.chat.events import Done, Piece, Receipt
from tests.drills.checker import Verdict
from tests.drills.clients.ear import Ear, now
from tests.drills.clients.websocket import WebSocketDevice
from tests.drills.counting import counts, detection, failed, hit, pauses
from tests.drills.crowd import CROWD, Kind, Mode, plan
from tests.drills.faults import Fault
from tests.drills.histories import judge_all
from tests.drills.load import Crowd
from tests.drills.seen import Asked
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration

LOST = Fault("lost", "a node's runs are lost", "kill", ("star",), "writer", 5.0)


class Nodes:
    """Two nodes over one Redis, and the crowd that talks with them ten times as fast as in a drill."""

    def __init__(self, stacks: Sequence[Stack], urls: dict[str, str]) -> None:
        self.stacks, self.urls = stacks, urls

    async def drill(self, mode: Mode, kinds: Sequence[Kind] = CROWD) -> tuple[float, Crowd, list[Verdict]]:
        """Let the crowd ask, lose all runs of the second node, and judge what everybody saw."""
        crowd = Crowd(plan(7, mode, self.urls, kinds=kinds, haste=10.0, pause_s=0.1))
        running = asyncio.create_task(crowd.run())
        try:
            await until(lambda: crowd.under_way.is_set() or running.done(), 20)
            at, pool = now(), self.stacks[1].pool
            for turn_id in list(pool.runs):
                pool.kill_run(turn_id)
            crowd.last.set()
            crowd.end.set()
            async with asyncio.timeout(30):
                await running
        finally:
            running.cancel()
        return at, crowd, await judge_all(crowd.seen.asked, self.urls)


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as exit_:
        stacks = [await exit_.enter_async_context(Stack(redis_server.url, node=node)) for node in ("aurora", "star")]
        yield Nodes(stacks, {stack.service.node: await exit_.enter_async_context(stack.serving()) for stack in stacks})


@pytest.mark.parametrize("mode", ["repeatable", "divergent"])
async def test_forty_clients_have_their_answers_whole_though_a_nodes_runs_are_lost(nodes: Nodes, mode: Mode) -> None:
    at, crowd, verdicts = await nodes.drill(mode)

    found = counts(verdicts)
    assert [problem for verdict in verdicts for problem in verdict.problems] == []
    assert found.complete == found.asked >= 40
    assert found.ends == {1: found.asked}
    assert found.takeovers > 0
    assert failed(verdicts, LOST.victims).going_on == 0
    assert hit(LOST, verdicts, at).counted
    assert len(detection(verdicts, at)) == counts([one for one in verdicts if one.asked.retries]).takeovers > 0
    going_on, once, met = pauses(verdicts, LOST.victims, at)
    assert len(going_on) >= 28 + 6  # six of the clients that go on have two devices
    assert once
    assert met
    assert {probe.door for probe in crowd.seen.probes} == set(nodes.urls)
    assert {probe.kind for probe in crowd.seen.probes} == {"get", "chat"}


async def test_a_reply_that_was_changed_in_the_store_is_found(nodes: Nodes) -> None:
    _, crowd, _ = await nodes.drill("repeatable", [Kind("sse", True, 4)])
    redis = nodes.stacks[0].redis
    asked = crowd.seen.asked[0]
    changed = 0
    async for key in redis.scan_iter("aurora:message:*"):
        message = json.loads(await redis.get(key))
        if message["role"] == "assistant" and message["turn_id"] == asked.turn_id:
            await redis.set(key, json.dumps({**message, "content": message["content"][:-1]}), keepttl=True)
            changed += 1

    verdicts = await judge_all(crowd.seen.asked, nodes.urls)

    assert changed == 1
    assert [verdict.asked.turn_id for verdict in verdicts if verdict.problems] == [asked.turn_id]


async def test_a_device_that_comes_back_in_the_moment_of_the_end_asks_for_the_pieces() -> None:
    """A device is told what was open when it connected, as a whole, and here before its own frame was read."""
    texts = ["You ", "speak."]
    end = Done(turn_id="turn_1", receipt=Receipt.of(texts), content="".join(texts))
    frames: list[dict[str, object]] = []

    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(end.model_dump_json())
        async for text in socket:
            frames.append(json.loads(text))
            if frames[-1]["type"] == "resume":
                pieces = [Piece(turn_id="turn_1", seq=seq, attempt=1, text=text) for seq, text in enumerate(texts, 1)]
                for event in (*pieces, end):
                    await socket.send(event.model_dump_json())

    async with serve(serve_one, "127.0.0.1", 0) as server:
        urls = {"star": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}
        ear = Ear(
            Asked("ada", "ws", True, "star", "robbie", "Hello", words=2, words_per_second=2.0, divergent=False, asked_at=now())
        )
        async with WebSocketDevice(urls, ["star"], "ada", asks=True) as device, asyncio.timeout(20):
            await device.ask(ear)
    assert [frame["type"] for frame in frames] == ["chat", "resume"]
    assert [heard.event.type for heard in ear.device.heard] == ["piece", "piece", "done"]


async def test_a_second_device_that_is_away_while_the_turn_ends_asks_for_the_rest_when_it_comes_back(nodes: Nodes) -> None:
    asked = Asked("ada", "ws", True, "aurora", "robbie", "Hello", words=20, words_per_second=20, divergent=False, asked_at=now())
    first, second = Ear(asked), Ear(asked, first=False)
    async with (
        TcpProxy(int(nodes.urls["star"].rpartition(":")[2])) as proxy,
        WebSocketDevice(nodes.urls, ["aurora"], "ada", asks=True) as asking,
        WebSocketDevice({"star": f"http://127.0.0.1:{proxy.port}"}, ["star"], "ada", asks=False) as listening,
        asyncio.timeout(20),
    ):
        listening.listen(second)
        answer = asyncio.create_task(asking.ask(first))
        await until(lambda: second.seq > 2)
        proxy.stall()  # as with a partition: the connection is there, and nothing comes
        await answer
        assert second.open
        proxy.flow()
        proxy.cut()
        await listening.heard(second, 10)
    (verdict,) = await judge_all([asked], nodes.urls)
    assert verdict.problems == []
    assert [reading.whole for reading in verdict.readings] == [True, True]
    assert len(asked.devices[1].links) > 1
