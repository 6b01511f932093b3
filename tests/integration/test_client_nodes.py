"""The client library over several nodes: it finds them, goes to the nearest, and leaves the one that dies, freezes or drains."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest

from serve_app.chat.events import Event, Piece
from serve_app.chat.nodes import NodeStatus
from serve_app.client import Assembly, AuroraClient
from serve_app.client.nodes import NEARER_BY_S, Nodes
from serve_app.client.seen import Seen
from tests.support.nodes import Node, cluster
from tests.support.redis_process import RedisProcess, free_port
from tests.support.serving import undisturbed
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration

SLOW: dict[str, object] = {"words": 120, "words_per_second": 80}
LEFT_WITHIN_S = 4.0 + 1.5
"""Two seconds of silence, two probes of a second each; and what a busy machine takes beyond."""


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[list[Node]]:
    """Three nodes over one Redis."""
    async with cluster(redis_server.url) as running:
        yield running


async def answer(client: AuroraClient, assembly: Assembly, when: int = 0, act: object = None) -> list[Event]:
    """Ask, run `act` once piece `when` is there, and return all events."""
    events = list[Event]()
    async with aclosing(client.ask("Hello", personality="robbie", options=SLOW, assembly=assembly)) as stream:
        async for event in stream:
            events.append(event)
            if callable(act) and isinstance(event, Piece) and event.seq == when:
                done = act()
                if asyncio.iscoroutine(done):
                    await done
    return events


async def check(client: AuroraClient, assembly: Assembly, events: list[Event]) -> None:
    """The reply is the undisturbed one, each piece came once, and one answer is stored."""
    assert assembly.whole() == await undisturbed("Hello", SLOW)
    assert [event.seq for event in events if isinstance(event, Piece)] == list(range(1, assembly.seq + 1))
    assert [event.type for event in events].count("done") == 1
    history = await client.history(assembly.conversation_id)
    assert [message["role"] for message in history["messages"]] == ["user", "assistant"]
    assert history["messages"][1]["content"] == assembly.text


async def test_the_client_learns_of_all_nodes_from_the_one_it_is_given(nodes: list[Node]) -> None:
    async with AuroraClient([nodes[1].url], "ada") as client:
        await until(lambda: set(client.nodes) == {node.url for node in nodes})
        assert [node["node"] for node in (await client.info())["nodes"]] == ["aurora", "star", "vengeance"]


async def test_a_node_that_says_no_more_is_forgotten(nodes: list[Node], redis_server: RedisProcess) -> None:
    async with AuroraClient([nodes[0].url], "ada") as client:
        with redis_server.client() as redis:
            redis.zadd("aurora:nodes", {"ghost": 1})
            redis.set("aurora:node:ghost", '{"node": "ghost", "url": "http://127.0.0.1:9"}')
        await until(lambda: len(client.nodes) == 3)
        assert {node["node"] for node in (await client.info())["nodes"]} == {"aurora", "star", "vengeance"}
        with redis_server.client() as redis:
            assert 0 < redis.ttl("aurora:node:star") <= 10


async def test_a_client_that_came_by_https_is_not_led_onto_http(nodes: list[Node]) -> None:
    def tell(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"nodes": [{"url": nodes[0].url}, {"url": "https://star"}], "status": "healthy"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(tell)) as http:
        known = Nodes(["https://chat"], http, Seen())
        exploring = asyncio.create_task(known.keep_up())
        await until(lambda: len(known.urls) == 2)
        exploring.cancel()
        await asyncio.gather(exploring, return_exceptions=True)
        assert known.urls == ["https://chat", "https://star"]


@pytest.mark.parametrize("chance", range(2))
async def test_an_answer_goes_on_elsewhere_at_once_when_its_node_is_killed(nodes: list[Node], chance: int) -> None:
    async with AuroraClient([nodes[0].url], "ada") as client:
        await until(lambda: len(client.nodes) == 3)
        assembly = Assembly()
        events = await answer(client, assembly, random.Random(chance).randrange(2, 20), nodes[0].door.kill)

        await check(client, assembly, events)
        assert client.seen.failed_requests >= 1
        assert client.seen.moves >= 1
        assert client.seen.longest_pause_s[assembly.turn_id] < 1.5


async def test_two_nodes_that_die_together_leave_the_third(nodes: list[Node]) -> None:
    async def kill_both() -> None:
        await nodes[0].door.kill()
        await nodes[1].door.kill()

    async with AuroraClient([node.url for node in nodes], "ada", explore=False) as client:
        assembly = Assembly()
        events = await answer(client, assembly, 5, kill_both)

        await check(client, assembly, events)
        assert client.seen.longest_pause_s[assembly.turn_id] < 3.0


async def test_an_answer_goes_on_elsewhere_when_its_node_freezes_in_the_middle(nodes: list[Node]) -> None:
    lost = list[str]()
    async with AuroraClient([nodes[0].url], "ada", on_lost=lost.append) as client:
        await until(lambda: len(client.nodes) == 3)
        assembly = Assembly()
        events = await answer(client, assembly, 5, nodes[0].door.freeze)

        await check(client, assembly, events)
        assert "silent" in lost[0]
        assert 2.0 < client.seen.longest_pause_s[assembly.turn_id] < LEFT_WITHIN_S


async def test_a_message_to_a_frozen_node_is_answered_by_another_and_stored_once(nodes: list[Node]) -> None:
    async with AuroraClient([node.url for node in nodes], "ada", explore=False) as client:
        nodes[0].door.freeze()
        assembly = Assembly()
        events = await answer(client, assembly)

        await check(client, assembly, events)
        assert len(await nodes[1].stack.turns.recent_turns("ada")) == 1
        assert client.seen.longest_pause_s[assembly.turn_id] < LEFT_WITHIN_S


async def test_a_message_that_a_node_heard_before_it_froze_is_answered_once(nodes: list[Node]) -> None:
    """The turn has begun there; the same key leads to it from anywhere."""
    async with AuroraClient([node.url for node in nodes], "ada", explore=False) as client:

        def freeze_at_the_answer(chunk: bytes) -> bytes:
            nodes[0].door.freeze()
            return b""

        nodes[0].door.swallow = freeze_at_the_answer
        assembly = Assembly()
        events = await answer(client, assembly)

        await check(client, assembly, events)
        assert nodes[0].door.swallowed > 0
        assert [turn.turn_id for turn in await nodes[1].stack.turns.recent_turns("ada")] == [assembly.turn_id]


async def test_every_other_request_leaves_a_frozen_node_too(nodes: list[Node]) -> None:
    async with AuroraClient([node.url for node in nodes], "ada", explore=False) as client:
        nodes[0].door.freeze()
        async with asyncio.timeout(LEFT_WITHIN_S):
            made = await client.start_conversation("kristina")
        assert [c["conversation_id"] for c in (await client.conversations())["conversations"]] == [made["conversation_id"]]
        assert client.seen.failed_requests == 1


async def test_a_conversation_whose_start_was_heard_and_not_answered_is_started_once(nodes: list[Node]) -> None:
    async with AuroraClient([node.url for node in nodes], "ada", explore=False) as client:
        nodes[0].door.swallow = lambda chunk: (nodes[0].door.cut(), b"")[1]
        made = await client.start_conversation("kristina")
        assert nodes[0].door.swallowed > 0
        assert [c["conversation_id"] for c in (await client.conversations())["conversations"]] == [made["conversation_id"]]


async def test_an_engine_that_thinks_for_long_is_no_frozen_node(nodes: list[Node]) -> None:
    async with AuroraClient([node.url for node in nodes], "ada") as client:
        assembly = await client.say("Hello", personality="robbie", options={"words": 3, "words_per_second": 0.4})
        assert client.seen.longest_pause_s[assembly.turn_id] > 2.2, "it was to be silent for longer than the watch waits"
        assert client.seen.failed_requests == 0


async def test_a_node_that_lives_but_has_lost_its_redis_is_left_for_one_that_has_not(redis_server: RedisProcess) -> None:
    lost = list[str]()
    async with (
        TcpProxy(redis_server.port) as to_redis,
        Stack(redis_server.url, node="aurora") as well,
        Stack(redis_server.url, node="star") as generates,
        Stack(to_redis.url, node="vengeance", patience_s=1.0) as cut_off,
        well.serving() as first,
        cut_off.serving() as second,
    ):
        cut_off.take_turn = generates.take_turn  # type: ignore[method-assign]  # else the answer would stop with it
        async with AuroraClient([second, first], "ada", explore=False, on_lost=lost.append) as client:
            assembly = Assembly()
            options: dict[str, object] = {"words": 120, "words_per_second": 18}
            async with aclosing(client.ask("Hello", personality="robbie", options=options, assembly=assembly)) as stream:
                async for event in stream:
                    if isinstance(event, Piece) and event.seq == 5:
                        to_redis.stall()

            assert assembly.whole() == await undisturbed("Hello", options)
            assert lost == ["it has lost its Redis, and another node has not"]
        to_redis.flow()


async def test_when_redis_is_away_from_everywhere_nobody_runs_about(redis_server: RedisProcess) -> None:
    async with TcpProxy(redis_server.port) as to_redis, cluster(to_redis.url, ["aurora", "star"]) as nodes:
        urls = [node.url for node in nodes]
        async with AuroraClient(urls, "ada", explore=False) as client:
            assembly = Assembly()

            moves = list[int]()

            def come_back() -> None:
                moves.append(client.seen.moves)
                to_redis.flow()

            def blink() -> None:
                to_redis.stall()
                asyncio.get_running_loop().call_later(6.0, come_back)

            events = await answer(client, assembly, 5, blink)
            await check(client, assembly, events)
            assert client.seen.longest_pause_s[assembly.turn_id] > 5.0
            assert moves == [0]


async def test_a_draining_node_gets_nothing_new_and_finishes_what_it_has(nodes: list[Node]) -> None:
    async with AuroraClient([nodes[0].url], "ada") as client:
        await until(lambda: len(client.nodes) == 3)
        assembly = Assembly()
        asked = asyncio.create_task(answer(client, assembly))
        await until(lambda: assembly.seq > 3)
        await nodes[0].stack.presence.say(NodeStatus.DRAINING)
        async with httpx.AsyncClient() as http:
            told = await http.get(f"{nodes[0].url}/health")
            assert (told.status_code, told.json()["error"]["code"]) == (503, "draining")
            assert (await http.get(f"{nodes[0].url}/health", params={"draining": 404})).status_code == 404

        await check(client, assembly, await asked)
        assert client.seen.failed_requests == 0
        others = {node.stack.service.node for node in nodes[1:]}
        async with AuroraClient([node.url for node in nodes], "bob") as late:
            await until(lambda: late.seen.moves == 1)
            assert (await late.info())["node"] in others
            statuses = {node["node"]: node["status"] for node in (await late.info())["nodes"]}
            assert statuses == {"aurora": "draining", "star": "serving", "vengeance": "serving"}


async def test_the_client_goes_to_the_nearest_node(nodes: list[Node]) -> None:
    nodes[0].door.delay_s, nodes[1].door.delay_s = 0.05, 0.03
    async with AuroraClient([node.url for node in nodes], "ada") as client:
        await until(lambda: client.seen.moves == 1)
        assert (await client.info())["node"] == "vengeance"
        assert client.seen.failed_requests == 0


async def test_nodes_that_are_about_as_near_move_nobody(nodes: list[Node]) -> None:
    for number, node in enumerate(nodes):
        node.door.delay_s = 0.03 - number * NEARER_BY_S / 2
    async with httpx.AsyncClient() as http:
        known = Nodes([node.url for node in nodes], http, seen := Seen())
        for _ in range(3):
            await known.measure()
        assert (known.current, seen.moves) == (nodes[0].url, 0)


async def test_a_client_comes_back_to_a_node_that_is_well_again_only_when_it_is_nearer(nodes: list[Node]) -> None:
    for node in nodes[1:]:
        node.door.delay_s = 0.05
    nodes[0].door.freeze()
    async with AuroraClient([node.url for node in nodes], "ada") as client:
        assert (await client.info())["node"] != "aurora"
        nodes[0].door.flow()
        await until(lambda: client.seen.moves >= 2, timeout=20)
        assert (await client.info())["node"] == "aurora"


async def test_a_node_that_was_never_there_costs_nothing_but_a_try(nodes: list[Node]) -> None:
    async with AuroraClient([f"http://127.0.0.1:{free_port()}", nodes[2].url], "ada", explore=False) as client:
        assert (await client.info())["node"] == "vengeance"
        assert (client.seen.failed_requests, client.seen.moves) == (1, 1)
