"""The records of the nodes: each node says that it is there, all can name all, and whoever falls silent is forgotten."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.nodes import NODE_SECONDS, NodeRecord, NodeStatus, NodeStore, Presence
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import FAKE_CLOCK, NOON, store
from tests.support.waiting import until

pytestmark = pytest.mark.integration

STAR = NodeRecord(node="star", url="http://10.0.0.2:8000")


async def test_a_node_is_named_until_it_has_been_silent_for_too_long(redis_server: RedisProcess) -> None:
    async with store(redis_server.url, clock=FAKE_CLOCK) as at:
        await at.set_clock(NOON)
        await at.nodes.register(STAR)
        await at.set_clock(NOON + NODE_SECONDS * 1000 - 1)
        assert list(await at.nodes.list()) == [STAR]
        await at.set_clock(NOON + NODE_SECONDS * 1000)
        assert list(await at.nodes.list()) == []


async def test_every_node_names_every_node_in_one_order_with_its_latest_status(redis_server: RedisProcess) -> None:
    async with store(redis_server.url) as at:
        one = Presence(at.nodes, node="vengeance", url="http://10.0.0.3:8000", every_s=0.02)
        two = Presence(at.nodes, node="aurora", url="http://10.0.0.1:8000", every_s=0.02)
        async with one, two:
            await until(lambda: len(two.known) == len(one.known) == 2)
            await one.say(NodeStatus.DRAINING)
            assert [record.status for record in one.known] == [NodeStatus.SERVING, NodeStatus.DRAINING]
            await until(lambda: two.known == one.known)
            one.check()


async def test_a_node_without_an_address_knows_the_others_and_is_not_named(redis_server: RedisProcess) -> None:
    async with store(redis_server.url) as at:
        await at.nodes.register(STAR)
        async with Presence(at.nodes, node="aurora", every_s=0.02) as hidden:
            await until(lambda: bool(hidden.known))
            assert list(hidden.known) == [STAR]


async def test_what_a_newer_release_says_of_its_node_is_passed_over(redis_server: RedisProcess) -> None:
    async with store(redis_server.url) as at:
        await at.nodes.register(STAR)
        await at.scripts.run(
            "register", "node", "newer", '{"node": "newer", "url": "http://10.0.0.9:8000", "status": "resting"}', 10
        )
        assert list(await at.nodes.list()) == [STAR]


class Wavering(NodeStore):
    """A store that is away whenever a test says so."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.kept: list[NodeRecord] = []

    async def register(self, record: NodeRecord) -> None:
        self.asked += 1
        if self.away:
            raise StoreUnavailable()
        self.kept = [record]

    async def list(self) -> Sequence[NodeRecord]:
        return self.kept


async def test_while_the_store_is_away_the_nodes_stay_known_and_the_registering_goes_on() -> None:
    kept = Wavering()
    async with Presence(kept, node="star", url=STAR.url, every_s=0.01) as presence:
        await until(lambda: list(presence.known) == [STAR])
        kept.away, asked = True, kept.asked
        await until(lambda: kept.asked > asked + 3)
        assert list(presence.known) == [STAR]
        with pytest.raises(StoreUnavailable):
            await presence.say(NodeStatus.DRAINING)
        kept.away = False
        await until(lambda: presence.known[0].status is NodeStatus.DRAINING)
        presence.check()


async def test_a_presence_that_died_of_a_bug_fails_the_health_of_its_replica() -> None:
    class Broken(Wavering):
        async def list(self) -> Sequence[NodeRecord]:
            raise KeyError("a bug")

    async with Presence(Broken(), node="star", every_s=0.01) as presence:

        def died() -> bool:
            try:
                presence.check()
            except RuntimeError:
                return True
            return False

        await until(died)


async def test_a_conversation_that_is_asked_for_twice_with_one_key_is_started_once(stack: Stack) -> None:
    async with stack.serving() as url, httpx.AsyncClient(base_url=url) as http:
        body, once = {"client_id": "ada", "personality": "kristina"}, {"Idempotency-Key": "m-0001"}
        answers = await asyncio.gather(*(http.post("/api/conversations", json=body, headers=once) for _ in range(3)))
        other = await http.post("/api/conversations", json=body, headers={"Idempotency-Key": "m-0002"})

        assert {answer.status_code for answer in answers} == {201}
        (made,) = {answer.json()["conversation_id"] for answer in answers}
        assert other.json()["conversation_id"] != made
        assert (await http.get("/api/conversations", params={"client_id": "ada"})).json()["total"] == 2
