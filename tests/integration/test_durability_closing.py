"""Between being stored and being shown, an end belongs to nobody in particular: whoever finds it shows it, once (laws 1, 8)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.chat.ending import stop_turn
from serve_app.chat.errors import ConversationNotFound, EngineUnavailable, TurnInProgress
from serve_app.chat.events import Queued, parse_event
from serve_app.chat.service import Ask
from serve_app.chat.supervise import Ran, Supervisor, SupervisorConfig
from serve_app.chat.turns import Plan, RecentTurn, Verdict
from tests.support.redis_process import RedisProcess
from tests.support.redis_trio import RedisTrio
from tests.support.stack import Stack, personalities
from tests.support.turn_tools import (
    Open,
    Published,
    Store,
    claim,
    close_turn,
    ending,
    ends_in,
    events_in,
    fall_due,
    logged,
    lose_after,
    new_turn,
    open_turn,
    store,
)
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
FAST = SupervisorConfig(beat_s=0.05, retry_s=0.02)
TEXTS = ["Hel", "lo."]


@pytest.fixture
async def at(replicated_redis: RedisProcess) -> AsyncIterator[Store]:
    async with store(replicated_redis.url, replicas=1) as ports:
        yield ports


@pytest.fixture
async def kept(replicated_redis: RedisProcess) -> AsyncIterator[Stack]:
    async with Stack(replicated_redis.url, replicas=1) as stack:
        yield stack


class Idle:
    """A pool that is asked for nothing here."""

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        raise AssertionError("a turn that has its end was run again")


async def replies(at: Store | Stack, turn: Open) -> list[str]:
    """The stored replies of a turn's conversation."""
    page = await at.conversations.history(turn.begun.conversation_id, limit=9)
    return [message.content for message in page.messages if message.role == "assistant"]


async def test_a_closing_turn_whose_holder_died_is_announced_by_a_sweep_once(replicated_redis: RedisProcess, at: Store) -> None:
    with Published(replicated_redis) as published:
        turn = await open_turn(at)
        end = await close_turn(at, turn, TEXTS)
        assert ends_in(published.drain()) == []
        await fall_due(at, turn.turn_id)
        async with Supervisor(at.turns, Idle(), personalities(), FAST):
            await until(lambda: ended(at, turn))
        told = ends_in(published.drain(), turn.turn_id)
        assert [parse_event(event) for event in told] == [end.model_copy(update={"content": ""})]
        assert await at.turns.finish(turn.turn_id, token=turn.run, end=end, from_seq=3) == (Verdict.OK, 2), "it was not dead"
        assert ends_in(published.drain()) == []
    assert await replies(at, turn) == ["Hello."]


async def test_a_run_that_dies_with_its_turn_closing_is_seen_by_its_router_and_nobody_waits_for_a_lease(at: Store) -> None:
    class DiesClosing:
        async def run_turn(
            self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
        ) -> Ran:
            await claim(at, turn_id, dispatch, run)
            await close_turn(at, Open(turn_id, dispatch, run, begun, new.client_id), TEXTS)
            raise EngineUnavailable("The replica is gone.")

    new = new_turn()
    begun = await at.turns.begin(new)
    async with Supervisor(at.turns, DiesClosing(), personalities(), SupervisorConfig(beat_s=3_600)) as router:
        router.take(new.turn_id, token=new.token, personality="robbie")
        await until(lambda: at.redis.hget("aurora:turn:" + new.turn_id, "end"))
        await until(lambda: is_done(at, new.turn_id), 2)


async def test_an_announcement_that_was_lost_with_the_primary_comes_again_the_very_same(replicated: RedisTrio) -> None:
    told, stored = [], []
    async with store(replicated.url, replicas=1) as at:
        turn = await open_turn(at)
        await close_turn(at, turn, TEXTS)
        replicated.until_whole()
        for replica in replicated.replicas:  # what is promoted has the end, and nothing of what comes now
            with replica.client() as client:
                client.replicaof("NO", "ONE")
        for server in (replicated.primary, replicated.replicas[0]):
            with Published(server) as published, server.client() as client:
                client.config_set("min-replicas-to-write", 0)
                async with store(server.url) as there:
                    await fall_due(there, turn.turn_id)
                    (due,) = (await there.turns.sweep(token="s", batch=9)).due
                    assert due.closing
                    assert await there.turns.announce(turn.turn_id, token=due.token) is Verdict.OK
                    told.append(ends_in(published.drain(), turn.turn_id))
                    key = f"aurora:message:{turn.begun.conversation_id}:2"
                    stored.append(await there.redis.get(key))
    assert len(told[0]) == 1
    assert told[0] == told[1]
    assert stored[0] == stored[1] is not None


async def test_an_end_that_was_lost_in_a_failover_is_stored_again_by_its_holder(at: Store) -> None:
    """The primary and the replica that had it died together: the turn is open again, and its holder lives."""
    turn = await open_turn(at)
    end = await close_turn(at, turn, TEXTS)
    await lose_after(at, turn.turn_id, seq=1, attempt=1, token=turn.run)
    await at.redis.hset("aurora:turn:" + turn.turn_id, "state", "open")
    raw = await at.scripts.run("announce", turn.turn_id, turn.run)
    assert raw == [b"expect", b"2"]
    tail = logged(TEXTS[1:], after=1)
    assert (await at.turns.finish(turn.turn_id, token=turn.run, end=end, tail=tail, from_seq=2))[0] is Verdict.OK
    assert await replies(at, turn) == ["Hello."]


async def test_stopping_a_closing_turn_shows_the_end_that_it_has(replicated_redis: RedisProcess, kept: Stack) -> None:
    with Published(replicated_redis) as published:
        turn = await open_turn(kept)
        await close_turn(kept, turn, TEXTS)
        stopped = await kept.service.stop(turn.turn_id)
        assert stopped.end is not None
        assert stopped.end.type == "done"
        assert await stop_turn(kept.turns, turn.turn_id) is None
        assert [event["type"] for event in ends_in(published.drain(), turn.turn_id)] == ["done"]


async def test_deleting_a_conversation_whose_turn_is_closing_shows_its_end_first(
    replicated_redis: RedisProcess, kept: Stack
) -> None:
    with Published(replicated_redis) as published:
        turn = await open_turn(kept)
        await close_turn(kept, turn, TEXTS)
        with pytest.raises(TurnInProgress):
            await kept.turns.begin(new_turn(client_id=turn.client_id))
        await kept.service.delete_conversation(turn.begun.conversation_id, client_id=turn.client_id)
        assert [event["type"] for event in ends_in(published.drain(), turn.turn_id)] == ["done"]
    with pytest.raises(ConversationNotFound):
        await kept.service.history(turn.begun.conversation_id, limit=9)


async def test_many_who_find_the_same_end_show_it_once(replicated_redis: RedisProcess, at: Store) -> None:
    with Published(replicated_redis) as published:
        turn = await open_turn(at)
        end = await close_turn(at, turn, TEXTS)
        helpers = [at.turns.announce(turn.turn_id) for _ in range(10)]
        holders = [at.turns.finish(turn.turn_id, token=turn.run, end=end, from_seq=3) for _ in range(10)]
        stops = [stop_turn(at.turns, turn.turn_id) for _ in range(10)]
        await asyncio.gather(*helpers, *holders, *stops)
        assert len(ends_in(published.drain(), turn.turn_id)) == 1
    assert await replies(at, turn) == ["Hello."]


async def test_who_has_no_part_in_a_closing_turn_changes_nothing(at: Store) -> None:
    turn = await open_turn(at)
    await close_turn(at, turn, TEXTS)
    assert await at.turns.announce(turn.turn_id, token="somebody") is Verdict.SUPERSEDED
    assert (await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["!"], after=2)))[0] is Verdict.GONE
    refused = await at.turns.finish(turn.turn_id, token="other", end=ending(turn.turn_id, []), from_seq=1)
    assert refused[0] is Verdict.SUPERSEDED
    assert await at.turns.renew([(turn.turn_id, turn.run), (turn.turn_id, "other")]) == {"other"}
    snapshot = await at.turns.read(turn.turn_id)
    assert (snapshot.state, snapshot.end, snapshot.kept, snapshot.reply, len(snapshot.events)) == ("open", None, True, None, 3)
    assert await at.turns.recent_turns(turn.client_id) == [RecentTurn(turn.turn_id, is_open=True)]


# -- what is told, and when


async def test_the_devices_hear_that_a_message_is_accepted_before_anything_else_and_once(
    replicated_redis: RedisProcess, kept: Stack
) -> None:
    with Published(replicated_redis) as published:
        async with Listening(kept.service.ask(Ask(client_id="ann", message="Hello"))) as heard:
            await heard.end()
        told = published.drain()
    kinds = [event["type"] for event in events_in(told)]
    assert kinds[:2] == ["accepted", "started"]
    assert (kinds.count("accepted"), kinds.count("done")) == (1, 1)
    assert [message["role"] for channel, message in told if channel == "aurora:chat:message"] == ["user", "assistant"]


async def test_a_message_that_waits_for_a_replica_is_told_with_its_place_in_the_queue(
    replicated_redis: RedisProcess, at: Store
) -> None:
    with Published(replicated_redis) as published:
        new = new_turn(content="Hello there")
        begun = await at.turns.begin(new)
        assert events_in(published.drain()) == [], "it is not known yet to be kept"
        for _ in range(2):
            queued = Queued(turn_id=new.turn_id, place=1, estimate_seconds=1.0)
            await at.turns.renew([(new.turn_id, new.token)], queued={new.turn_id: queued})
        await claim(at, new.turn_id, new.token)
        told = events_in(published.drain())
    assert [event["type"] for event in told] == ["accepted", "queued", "queued", "started"]
    accepted = {"conversation_id": begun.conversation_id, "message_seq": 1, "personality": "robbie", "content": "Hello there"}
    assert accepted.items() <= told[0].items()


async def test_a_message_that_is_stopped_before_anybody_took_it_is_told_before_its_end(
    replicated_redis: RedisProcess, at: Store
) -> None:
    with Published(replicated_redis) as published:
        new = new_turn()
        await at.turns.begin(new)
        assert await stop_turn(at.turns, new.turn_id) is not None
        assert [event["type"] for event in events_in(published.drain())] == ["accepted", "stopped"]


async def ended(at: Store, turn: Open) -> bool:
    return (await at.turns.read(turn.turn_id)).end is not None


async def is_done(at: Store, turn_id: str) -> bool:
    return bool(await at.redis.hget("aurora:turn:" + turn_id, "state") == b"done")
