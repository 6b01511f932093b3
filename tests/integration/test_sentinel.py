"""The primary moves: the client finds the new one by itself, through Sentinels that may be dead, frozen, behind or lying."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import redis

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.state.bus import RedisBus
from serve_app.state.sentinel import ANSWER_WITHIN_S, Address, Sentinels
from tests.support.redis_process import free_port
from tests.support.redis_trio import NAME, RedisTrio
from tests.support.sentinel_liar import SentinelLiar
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.turn_tools import Assembled, Store, new_turn, open_turn, store, undisturbed
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
MESSAGE = "Tell me about the sea"
LONG = Options(words=2_400, words_per_second=400)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_an_answer_is_whole_although_the_primary_was_lost_in_the_middle_of_it(trio: RedisTrio, how: str) -> None:
    async with Stack(trio.url, replicas=1) as stack:
        async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=LONG))) as heard:
            await heard.pieces(5)
            lost = trio.primary
            lost.kill() if how == "kill" else lost.freeze()
            await asyncio.to_thread(trio.until_failed_over)
            moved, said = time.monotonic(), heard.said()
            await heard.pieces(said + 1)
            pause = time.monotonic() - moved
            if how == "freeze":
                lost.thaw()  # it still takes itself for the primary
            events = await heard.end(60)
        print(f"\n{how}: the next piece came {pause:.2f} s after the Sentinels had agreed on a new primary")
        assert pause < 2.0
        assert [event.type for event in events if event.type == "takeover"] == [], "its writer lived"
        said_whole = Assembled.of(events)
        assert said_whole.proven()
        assert said_whole.text == await undisturbed(MESSAGE, LONG)
        page = await stack.service.history(events[-1].model_dump()["conversation_id"], limit=9)
        assert [message.content for message in page.messages] == [MESSAGE, said_whole.text]


async def test_a_primary_that_comes_back_after_its_failover_acknowledges_nothing(trio: RedisTrio) -> None:
    old = trio.primary
    old.freeze()
    await asyncio.to_thread(trio.until_failed_over)
    (kept_on,) = [server for server in trio.replicas if server is not old]
    await until(lambda: follows(kept_on.port, trio.primary.port))
    old.thaw()
    async with store(old.url, replicas=1, patience_s=0.2) as cut_off:  # a node whose Sentinels cannot be reached
        with pytest.raises(StoreUnavailable):
            await cut_off.turns.begin(new_turn())
    async with store(trio.url, replicas=1) as at:
        assert (await at.turns.begin(new_turn())).message_seq == 1


async def test_sentinels_that_are_dead_or_frozen_cost_little(trio: RedisTrio) -> None:
    dead, frozen, well = trio.sentinels
    dead.kill()
    frozen.freeze()
    async with store(trio.url, replicas=1) as at, asyncio.timeout(1.5):
        await at.turns.begin(new_turn())
    frozen.thaw()
    well.freeze()
    async with store(trio.url, replicas=1) as at, asyncio.timeout(1.5):
        await at.turns.begin(new_turn())


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A host that accepts connections and says nothing, as a frozen one does."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@pytest.mark.parametrize("lie", ["a replica", "a dead server", "a frozen server", "no server at all"])
async def test_a_sentinel_that_lies_is_not_believed(replicated: RedisTrio, silent_port: int, lie: str) -> None:
    named = {"a replica": replicated.replicas[0].port, "a dead server": free_port(), "a frozen server": silent_port}.get(lie, 0)
    async with SentinelLiar(named, epoch=99) as liar, SentinelLiar(replicated.primary.port, epoch=1) as honest:
        url = f"sentinel://127.0.0.1:{liar.port},127.0.0.1:{honest.port},127.0.0.1:{free_port()}/{NAME}"
        async with store(url, replicas=1) as at:
            async with asyncio.timeout(2):
                await at.turns.begin(new_turn())
            assert liar.asked
            assert honest.asked
            assert {connection.port for connection in connections(at)} == {replicated.primary.port}


async def test_the_newest_configuration_comes_first_although_most_sentinels_are_behind_and_then_what_most_say() -> None:
    async with SentinelLiar(1, epoch=7) as ahead, SentinelLiar(2, epoch=6) as behind, SentinelLiar(2, epoch=6) as too:
        asked = Sentinels([Address("127.0.0.1", liar.port) for liar in (ahead, behind, too)], NAME)
        assert [address.port for address in await asked.candidates()] == [1, 2]
        ahead.epoch = 6
        assert [address.port for address in await asked.candidates()] == [2, 1]


async def test_a_frozen_sentinel_is_not_waited_for_while_most_of_them_answer(silent_port: int) -> None:
    async with SentinelLiar(1) as one, SentinelLiar(1) as two:
        asked = Sentinels([Address("127.0.0.1", port) for port in (silent_port, one.port, two.port)], NAME)
        took = []
        for _ in range(5):
            begun = time.monotonic()
            assert await asked.candidates() == [Address("127.0.0.1", 1)]
            took.append(time.monotonic() - begun)
    assert min(took) < ANSWER_WITHIN_S / 2


async def test_connections_that_break_together_ask_the_sentinels_once(replicated: RedisTrio) -> None:
    async with SentinelLiar(replicated.primary.port) as sentinel, store(sentinel.url) as at:
        await many(at)
        assert len(connections(at)) > 5
        assert sentinel.asked == 2, "one address, one epoch"


async def test_where_only_liars_answer_the_store_is_away_and_no_write_goes_astray(replicated: RedisTrio) -> None:
    async with (
        SentinelLiar(replicated.replicas[0].port) as liar,
        store(liar.url, replicas=1, patience_s=0.3) as at,
    ):
        with pytest.raises(StoreUnavailable):
            await at.turns.begin(new_turn())
        liar.named = replicated.primary.port
        await at.turns.begin(new_turn())


async def test_a_primary_that_was_demoted_under_open_connections_is_left_by_all_of_them(replicated: RedisTrio) -> None:
    async with SentinelLiar(replicated.primary.port) as sentinel, store(sentinel.url) as at:
        await many(at)
        before = {connection.port for connection in connections(at)}
        old = replicated.promote()
        replicated.attach(old)  # its clients' connections stay open, and every write says READONLY
        sentinel.named = replicated.primary.port
        async with asyncio.timeout(1):
            await at.turns.begin(new_turn())
        await many(at)
        assert before == {old.port}
        assert {connection.port for connection in connections(at) if connection.is_connected} == {replicated.primary.port}


async def test_after_a_half_open_connection_no_other_to_the_same_server_is_used(replicated: RedisTrio) -> None:
    """Each of them would hang for as long."""
    async with TcpProxy(replicated.primary.port) as proxy, SentinelLiar(proxy.port) as sentinel, store(sentinel.url) as at:
        await many(at)
        assert len(connections(at)) > 5
        proxy.stall()
        hanging = asyncio.create_task(at.turns.begin(new_turn()))
        await until(lambda: at.scripts.away.since is not None, 5)
        sentinel.named = replicated.primary.port
        begun = time.monotonic()
        await hanging
        await many(at)
        assert time.monotonic() - begun < 1.5
        proxy.flow()


async def test_what_hangs_on_a_lost_primary_is_let_go_as_soon_as_anybody_finds_the_new_one(replicated: RedisTrio) -> None:
    async with TcpProxy(replicated.primary.port) as proxy, SentinelLiar(proxy.port) as sentinel, store(sentinel.url) as at:
        await many(at)
        proxy.stall()
        hanging = [asyncio.create_task(at.turns.begin(new_turn())) for _ in range(5)]
        await until(lambda: len(connections(at, in_use=True)) == 5)
        sentinel.named = replicated.primary.port
        at.redis.connection_pool.primary.distrust(asyncio.get_running_loop().time())
        async with asyncio.timeout(1):  # half the timeout of a command
            await at.turns.begin(new_turn())
            await asyncio.gather(*hanging)
        proxy.flow()


async def test_the_bus_moves_with_the_primary_and_its_listeners_read_the_log_once(replicated: RedisTrio) -> None:
    """The old primary lives and keeps the subscription: nothing would ever come from there again, and no error either."""
    async with SentinelLiar(replicated.primary.port) as sentinel, store(sentinel.url) as at, RedisBus(at.redis) as bus:
        async with bus.listen("ann") as live:
            old = replicated.promote()
            sentinel.named = replicated.primary.port
            at.redis.connection_pool.primary.distrust(asyncio.get_running_loop().time())
            await at.turns.read((await open_turn(at, client_id="bob")).turn_id)
            assert await live.next(2) is None, "something may have been missed"
            new = new_turn(client_id="ann")
            await at.turns.begin(new)
            batch = await live.next(2)
            assert batch is not None
            assert (batch[0].type, batch[0].turn_id) == ("accepted", new.turn_id)
        with old.client() as client:
            assert client.pubsub_channels() == []


async def many(at: Store) -> None:
    """Use as many connections at once as a busy process does."""
    await asyncio.gather(*(at.turns.begin(new_turn()) for _ in range(20)))


def connections(at: Store, *, in_use: bool = False) -> list[object]:
    pool = at.redis.connection_pool
    return list(pool._in_use_connections) if in_use else [*pool._in_use_connections, *pool._available_connections]


def follows(replica: int, primary: int) -> bool:
    with redis.Redis(port=replica, protocol=2) as client:
        info = client.info("replication")
        return info.get("master_port") == primary and info["master_link_status"] == "up"
