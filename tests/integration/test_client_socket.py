"""The client library's WebSocket: one device, all turns, each piece once, whatever happens to the connection."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from serve_app.chat.events import Event, Piece
from serve_app.client import AuroraClient, AuroraSocket, NobodyAnswers, RequestRefused
from tests.integration.test_client_nodes import LEFT_WITHIN_S, SLOW
from tests.support.nodes import Node, cluster
from tests.support.redis_process import RedisProcess, free_port
from tests.support.serving import undisturbed
from tests.support.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[list[Node]]:
    """Three nodes over one Redis."""
    async with cluster(redis_server.url) as running:
        yield running


class Reader:
    """Reads a socket in the background."""

    def __init__(self, socket: AuroraSocket) -> None:
        self.socket = socket
        self.events: list[Event] = []

    async def read(self) -> None:
        async for event in self.socket.events():
            self.events.append(event)

    def seq(self, turn_id: str) -> int:
        return self.socket.assemblies[turn_id].seq if turn_id in self.socket.assemblies else 0

    async def pieces(self, turn_id: str, count: int) -> None:
        await until(lambda: self.seq(turn_id) >= count, 20)

    async def whole(self, turn_id: str, timeout: float = 30) -> str:
        """Wait for the end; return the text, proven by its receipt and given to the reader exactly once."""
        await until(lambda: any(e.turn_id == turn_id and e.type in ("done", "stopped", "failed") for e in self.events), timeout)
        mine = [event for event in self.events if event.turn_id == turn_id]
        text = self.socket.assemblies[turn_id].whole()
        assert "".join(event.text for event in mine if isinstance(event, Piece)) == text
        assert [event.type for event in mine].count(mine[-1].type) == 1
        return text


@asynccontextmanager
async def device(urls: list[str], client_id: str = "ada", **options: object) -> AsyncIterator[Reader]:
    """A device that reads all it hears."""
    async with AuroraSocket(urls, client_id, explore=False, **options) as socket:  # type: ignore[arg-type]
        reader = Reader(socket)
        task = asyncio.create_task(reader.read())
        yield reader
    await asyncio.wait_for(task, 5)


async def ask(reader: Reader, message: str = "Hello") -> str:
    async with asyncio.timeout(20):
        return await reader.socket.ask(message, personality="robbie", options=SLOW)


async def test_every_device_hears_every_turn_whichever_asked(nodes: list[Node]) -> None:
    async with device([nodes[0].url]) as phone, device([nodes[1].url]) as laptop:
        first = await ask(phone)
        async with AuroraClient([nodes[2].url], "ada") as client:
            second = (await client.say("Hello", personality="kristina", options=SLOW)).turn_id
        for reader in (phone, laptop):
            assert await reader.whole(first) == await undisturbed("Hello", SLOW)
            assert await reader.whole(second) == await undisturbed("Hello", SLOW, personality="kristina")


@pytest.mark.parametrize("chance", range(2))
async def test_a_connection_cut_at_random_points_loses_and_repeats_nothing(nodes: list[Node], chance: int) -> None:
    cuts = sorted(random.Random(chance).sample(range(2, 30), 4))
    async with device([nodes[0].url]) as reader:
        turn_id = await ask(reader)
        for cut in cuts:
            await reader.pieces(turn_id, cut)
            nodes[0].door.cut()
        assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)
        assert reader.socket.seen.failed_requests >= 2


async def test_a_killed_node_is_left_at_once(nodes: list[Node]) -> None:
    async with device([node.url for node in nodes]) as reader:
        turn_id = await ask(reader)
        await reader.pieces(turn_id, 5)
        await nodes[0].door.kill()
        assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)
        assert reader.socket.seen.longest_pause_s[turn_id] < 1.5


async def test_a_frozen_node_is_left_after_its_pings_go_unanswered(nodes: list[Node]) -> None:
    async with device([node.url for node in nodes]) as reader:
        turn_id = await ask(reader)
        await reader.pieces(turn_id, 5)
        nodes[0].door.freeze()
        assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)
        assert reader.socket.seen.longest_pause_s[turn_id] < LEFT_WITHIN_S


async def test_an_answer_that_ended_while_the_connection_was_away_comes_with_the_next(nodes: list[Node]) -> None:
    async with device([nodes[0].url]) as reader:
        turn_id = await ask(reader)
        await reader.pieces(turn_id, 3)
        await nodes[0].door.kill()

        async def ended() -> bool:
            return (await nodes[0].stack.turns.read(turn_id)).end is not None

        await until(ended)
        async with nodes[0].door:
            assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)


async def test_a_message_whose_acceptance_was_lost_is_asked_again_and_answered_once(nodes: list[Node]) -> None:
    async with device([node.url for node in nodes]) as reader:
        await until(lambda: nodes[0].door.accepted == 1)
        await until(lambda: reader.socket.connected)
        nodes[0].door.swallow = lambda chunk: (nodes[0].door.cut(), b"")[1]
        turn_id = await ask(reader)
        assert nodes[0].door.swallowed > 0
        assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)
        assert [turn.turn_id for turn in await nodes[1].stack.turns.recent_turns("ada")] == [turn_id]


async def test_a_node_that_says_come_back_is_left_for_another(nodes: list[Node]) -> None:
    lost = list[str]()

    async def leaving(socket: ServerConnection) -> None:
        await socket.close(1012, "come back")

    async with serve(leaving, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with device([f"http://127.0.0.1:{port}", nodes[1].url], on_lost=lost.append) as reader:
            turn_id = await ask(reader)
            assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)
            assert "1012" in lost[0]
            assert (await nodes[1].stack.turns.read(turn_id)).end is not None


async def test_a_refused_message_is_told_to_its_sender_and_the_connection_lives(nodes: list[Node]) -> None:
    async with device([nodes[0].url]) as reader:
        with pytest.raises(RequestRefused) as caught:
            await reader.socket.ask("Hello", personality="nobody")
        assert caught.value.code == "no_personality"
        turn_id = await ask(reader)
        with pytest.raises(RequestRefused) as caught:
            await reader.socket.ask("And?", personality="robbie")
        assert (caught.value.code, caught.value.turn_id) == ("turn_in_progress", turn_id)
        await reader.whole(turn_id)
        assert reader.socket.seen.failed_requests == 0


async def test_a_client_that_aurora_does_not_want_is_told_so(nodes: list[Node]) -> None:
    async with AuroraSocket([nodes[0].url], "!", explore=False) as socket:
        with pytest.raises(RequestRefused):
            await anext(socket.events())
        with pytest.raises(RequestRefused):
            await socket.ask("Hello")


async def test_silence_everywhere_is_told_to_whoever_asks_and_whoever_reads() -> None:
    async with AuroraSocket([f"http://127.0.0.1:{free_port()}"], "ada", patience_s=0.3, explore=False) as socket:
        with pytest.raises(NobodyAnswers):
            await socket.ask("Hello")
        with pytest.raises(NobodyAnswers):
            await anext(socket.events())


async def test_a_device_that_is_idle_for_longer_than_its_patience_is_still_there(nodes: list[Node]) -> None:
    async with device([node.url for node in nodes], patience_s=0.2) as reader:
        await until(lambda: reader.socket.connected)
        await asyncio.sleep(4.5)  # the idleness itself
        nodes[0].door.cut()
        turn_id = await ask(reader)
        assert await reader.whole(turn_id) == await undisturbed("Hello", SLOW)
