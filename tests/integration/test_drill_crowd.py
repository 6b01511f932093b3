"""The crowd of the drills at two nodes in one process: what it writes down is enough to find every answer right, or wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest

from tests.drills.checker import Verdict
from tests.drills.clients.ear import now
from tests.drills.counting import counts, detection, failed, hit, pauses
from tests.drills.crowd import CROWD, Kind, Mode, plan
from tests.drills.faults import Fault
from tests.drills.histories import judge_all
from tests.drills.load import Crowd
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
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
