"""A lost reply is not a lost write: any script, run again with the same arguments, changes nothing (law 9).

One life of turns and conversations calls every script in many situations. For each script, that life is led once with
every call of this script made twice: as after a reply that was lost.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import serve_app.state
from serve_app.chat.errors import ChatError
from serve_app.chat.events import Queued
from serve_app.chat.nodes import NodeRecord
from serve_app.chat.turns import Failure, Held, RecentTurn, Verdict
from serve_app.state.drain import RedisDrains
from serve_app.state.nodes import RedisNodes
from serve_app.state.scripts import Scripts
from tests.support.redis_process import RedisProcess
from tests.support.turn_tools import (
    FAKE_CLOCK,
    NOON,
    Published,
    Store,
    claim,
    close_turn,
    dump,
    ending,
    fall_due,
    logged,
    new_turn,
    open_turn,
    plan,
    store,
)

pytestmark = pytest.mark.integration
LUA = Path(serve_app.state.__file__).parent / "lua"
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua") if not path.stem.startswith("_"))

ANSWERS_DIFFERENTLY: dict[str, Callable[[Any, Any], bool]] = {
    # Only when the next lease lapses: what was handed out is leased now, and what got lost is due one lease later.
    "sweep": lambda first, second: len(second) == 1,
    "drain": lambda first, second: first is not None and int(second) == int(first) - 1_500,  # what time there is left
    "session": lambda first, second: second[1] == b"",  # a session is new once
}
TELLS_AGAIN = {"renew": {"queued"}}
"""`queued` says where a turn stands, not what happened to it: it is repeated every second anyway."""


class Twice(Scripts):
    """Calls one script twice each time, and remembers what the second call did."""

    target = ""
    later_ms = 0
    look: Callable[[], Any]
    listen: Callable[[], list[tuple[str, Any]]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls = 0

    async def run(
        self,
        name: str,
        *args: str | int | bytes,
        patience_s: float | None = None,
        kept: Callable[[Any], bool] | None = None,
    ) -> Any:
        first = await super().run(name, *args, patience_s=patience_s, kept=kept)
        if name != self.target:
            return first
        self.calls += 1
        before = self.look()
        self.listen()
        await self._redis.incrby("test:clock", self.later_ms)
        second = await super().run(name, *args, patience_s=patience_s, kept=kept)
        told = [event for _, batch in self.listen() for event in (batch if isinstance(batch, list) else [batch])]
        assert {event["type"] for event in told} <= TELLS_AGAIN.get(name, set()), told
        assert self.look() == before, f"{name}{args} changed something when it came again"
        same = ANSWERS_DIFFERENTLY.get(name)
        if same is None and not (name == "claim" and self.later_ms):  # a claim says how much time is left
            assert second == first, f"{name}{args} answered differently when it came again"
        assert same is None or second == first or same(first, second), (first, second)
        return first


async def end_while_everybody_looks(at: Store) -> None:
    """Call every script about turns that have an end that nobody may see yet, and that nobody knows to be kept yet."""
    turns, conversations = at.turns, at.conversations
    for helper in ("stopper", "sweeper"):
        turn = await open_turn(at, client_id="cleo")
        texts = ["That", " was it."]
        end = await close_turn(at, turn, texts, clock=FAKE_CLOCK)
        await turns.renew([(turn.turn_id, turn.run), (turn.turn_id, turn.dispatch)])
        await turns.claim(turn.turn_id, dispatch=turn.dispatch, run="r", node="star", plan=plan(), window=60)
        await turns.append(turn.turn_id, token=turn.run, pieces=logged(["late"], after=2))
        assert await turns.redispatch(turn.turn_id, dispatch=turn.dispatch, run=turn.run, token="d") is Verdict.CLOSING
        assert await turns.hold(turn.turn_id, token="s", stopping=True) is Verdict.CLOSING
        with pytest.raises(ChatError):
            await turns.begin(new_turn(client_id="cleo"))
        assert await conversations.delete(turn.begun.conversation_id, client_id="cleo") == turn.turn_id
        assert (await turns.read(turn.turn_id)).end is None
        assert await turns.recent_turns("cleo") == [RecentTurn(turn.turn_id, is_open=True)]
        await turns.announce(turn.turn_id, token="somebody")
        if helper == "sweeper":
            await fall_due(at, turn.turn_id)
            (due,) = (await turns.sweep(token="s", batch=9)).due
            await turns.announce(turn.turn_id, token=due.token)
        else:
            await turns.announce(turn.turn_id)
        await turns.announce(turn.turn_id)
        await turns.finish(turn.turn_id, token=turn.run, end=end, tail=logged(texts), from_seq=1)
        await conversations.delete(turn.begun.conversation_id, client_id="cleo")
    untold = new_turn(client_id="dora")
    begun = await turns.begin(untold)
    await turns.announce(untold.turn_id)
    await turns.announce(untold.turn_id, token=untold.token)
    await turns.read(untold.turn_id)
    await conversations.history(begun.conversation_id, limit=9)
    queued = Queued(turn_id=untold.turn_id, place=1, estimate_seconds=1.0)
    await turns.renew([(untold.turn_id, untold.token)], queued={untold.turn_id: queued})
    stopped = new_turn(client_id="emma")
    await turns.begin(stopped)
    await turns.hold(stopped.turn_id, token="stop", stopping=True)
    await turns.finish(stopped.turn_id, token="stop", end=ending(stopped.turn_id, [], status="stopped"), from_seq=1)


async def lead_a_life(at: Store) -> None:
    """Call every script, in as many situations as there are."""
    turns, conversations, drains, nodes = at.turns, at.conversations, RedisDrains(at.scripts), RedisNodes(at.scripts)
    await nodes.register(NodeRecord(node="star", url="http://198.18.0.2:8000"))
    assert [record.node for record in await nodes.list()] == ["star"]
    await turns.sweep(token="first-ever", batch=10)
    await at.sessions.touch(client_id="ann", node="aurora", timestamp="2025-10-06T12:00:00Z", connected=False)
    await at.sessions.touch(client_id="ann", node="star", timestamp="2025-10-06T12:00:05Z", connected=True)
    await conversations.create(
        client_id="ann", personality="robbie", title="Mine", node="aurora", timestamp="2025-10-06T12:00:00Z", unix=7, marker="m"
    )

    # A turn that is queued, dies twice, and is done in the end.
    new = new_turn(client_id="ann", idempotency_key="key", body_hash="body")
    begun = await turns.begin(new)
    for refused in (
        new_turn(client_id="ann"),
        new_turn(client_id="ann", idempotency_key="key", body_hash="other"),
        new_turn(client_id="ann", conversation_id="conv_bob_1"),
        new_turn(client_id="bob", max_open_turns=1),
    ):
        with pytest.raises(ChatError):
            await turns.begin(refused)
    assert (await turns.begin(new_turn(client_id="ann", idempotency_key="key", body_hash="body"))).attached
    queued = Queued(turn_id=new.turn_id, place=1, estimate_seconds=1.0)
    await turns.renew([(new.turn_id, new.token), ("turn_unknown", "x")], queued={new.turn_id: queued})
    await turns.redispatch(new.turn_id, dispatch=new.token, run="run-0", token="again-0")
    await claim(at, new.turn_id, "again-0", "run-1")
    await turns.renew([(new.turn_id, "run-1"), (new.turn_id, "run-0")])
    await turns.append(new.turn_id, token="run-1", pieces=logged(["Hel", "lo"]))
    await turns.append(new.turn_id, token="run-1", pieces=logged(["lo", " there"], after=1))
    await turns.append(new.turn_id, token="run-1", pieces=logged(["too far"], after=9))
    await turns.append(new.turn_id, token="somebody", pieces=logged(["!"], after=3))
    await turns.redispatch(new.turn_id, dispatch="again-0", run="run-1", token="again-1")
    await turns.claim(new.turn_id, dispatch="wrong", run="run-x", node="star", plan=plan(), window=60)
    await claim(at, new.turn_id, "again-1", "run-2", node="star")
    await turns.redispatch(new.turn_id, dispatch="again-1", run="run-2", token="again-2")
    await fall_due(at, new.turn_id)
    (due,) = (await turns.sweep(token="sweep-1", batch=10)).due
    await claim(at, new.turn_id, due.token, "run-3", node="vengeance")
    await turns.read(new.turn_id)
    texts = ["Hel", "lo", " there", ", Ann."]
    end = ending(new.turn_id, texts)
    await turns.finish(new.turn_id, token="run-2", end=end, tail=logged(texts[3:], after=3, attempt=2), from_seq=4)
    await turns.finish(new.turn_id, token="run-3", end=end, tail=logged(texts[3:], after=7, attempt=4), from_seq=8)
    await turns.finish(new.turn_id, token="run-3", end=end, tail=logged(texts[3:], after=3, attempt=4), from_seq=4)
    await turns.append(new.turn_id, token="run-3", pieces=logged(["late"], after=4))
    await turns.claim(new.turn_id, dispatch=due.token, run="run-4", node="star", plan=plan(), window=60)
    await turns.read(new.turn_id, after=2)

    # One whose run gives it back, as its node is leaving, one whose engine failed, and one that its router hands over unclaimed.
    await drains.look("star", replica="Inference a", in_hand=1)
    await at.redis.set("aurora:node:star:drain", json.dumps({"until_ms": NOON + 3_600_000}))
    await drains.look("star", replica="Inference a", in_hand=1)
    moved = await open_turn(at, client_id="mo")
    await turns.append(moved.turn_id, token=moved.run, pieces=logged(["Hel"]))
    far = logged(["far"], after=7)
    await turns.release(moved.turn_id, token=moved.run, dispatch=moved.dispatch, tail=far, from_seq=8)
    await turns.release(moved.turn_id, token="somebody", dispatch="x", from_seq=2)
    await turns.release(moved.turn_id, token=moved.run, dispatch=moved.dispatch, tail=logged(["lo"], after=1), from_seq=2)
    await claim(at, moved.turn_id, moved.dispatch, "run-6")
    await turns.release(moved.turn_id, token="run-6", dispatch=moved.dispatch, from_seq=3)
    await claim(at, moved.turn_id, moved.dispatch, "run-7")
    await turns.finish(moved.turn_id, token="run-7", end=ending(moved.turn_id, ["Hel", "lo"]), from_seq=3)
    await turns.release(moved.turn_id, token="run-7", dispatch=moved.dispatch, from_seq=3)
    broken, failure = await open_turn(at, client_id="mo"), Failure("engine_error", "The engine failed.", True)
    await turns.release(
        broken.turn_id,
        token=broken.run,
        dispatch=broken.dispatch,
        tail=logged(["Hm"]),
        from_seq=1,
        reason=Verdict.UNFIT,
        failure=failure,
    )
    held = await turns.hold(broken.turn_id, token=broken.dispatch, stopping=False, mine=broken.dispatch)
    assert isinstance(held, Held)
    assert held.failure == failure
    end = ending(broken.turn_id, ["Hm"], status="failed")
    await turns.finish(broken.turn_id, token=broken.dispatch, end=end, from_seq=2)
    queueing = new_turn(client_id="mo")
    await turns.begin(queueing)
    await turns.hand_over([(queueing.turn_id, queueing.token), (moved.turn_id, "run-7"), ("turn_unknown", "x")])
    await turns.hold(queueing.turn_id, token="stop-4", stopping=True)
    await turns.finish(queueing.turn_id, token="stop-4", end=ending(queueing.turn_id, [], status="stopped"), from_seq=1)

    # One that is stopped, one that fails without a word, one whose attempts are used up, one that is only due.
    stopped = await open_turn(at, client_id="ann")
    await turns.append(stopped.turn_id, token=stopped.run, pieces=logged(["I th"]))
    await turns.hold(stopped.turn_id, token="stop-1", stopping=True)
    await turns.hold(stopped.turn_id, token="fail-1", stopping=False, mine="nobody")
    end = ending(stopped.turn_id, ["I th"], status="stopped")
    await turns.finish(stopped.turn_id, token="stop-1", end=end, from_seq=2)
    await turns.hold(stopped.turn_id, token="stop-2", stopping=True)
    failed = await open_turn(at, client_id="ann")
    end = ending(failed.turn_id, [], status="failed")
    await turns.finish(failed.turn_id, token=failed.run, end=end, from_seq=1)
    tired = new_turn(client_id="ann", undelivered=True)
    await turns.begin(tired)
    await turns.recent_turns("ann")
    await turns.delivered(tired.turn_id)
    await at.redis.hset("aurora:turn:" + tired.turn_id, "barren", 3)
    await turns.claim(tired.turn_id, dispatch=tired.token, run="run-5", node="star", plan=plan(), window=60)
    await at.redis.zadd("aurora:turns:open", {"turn_forgotten": 1})
    await fall_due(at, tired.turn_id)
    await turns.sweep(token="sweep-2", batch=10)

    await turns.recent_turns("ann")
    await conversations.history(begun.conversation_id, limit=3)
    await conversations.list("ann", limit=10, offset=0)
    await at.sessions.list(limit=10, offset=0)
    assert await conversations.delete(begun.conversation_id, client_id="ann") == tired.turn_id
    with pytest.raises(ChatError):
        await conversations.delete(begun.conversation_id, client_id="bob")
    await turns.hold(tired.turn_id, token="stop-3", stopping=True)
    await turns.finish(tired.turn_id, token="stop-3", end=ending(tired.turn_id, [], status="stopped"), from_seq=1)
    assert await conversations.delete(begun.conversation_id, client_id="ann") is None
    await turns.recent_turns("ann")
    with pytest.raises(ChatError):
        await conversations.history(begun.conversation_id, limit=3)


async def lead_it_with_two_calls_of(name: str, server: RedisProcess, *, replicas: int, later_ms: int) -> None:
    with Published(server) as published:
        async with store(server.url, clock=FAKE_CLOCK, kind=Twice, replicas=replicas) as at:
            await at.set_clock(NOON)
            twice = at.scripts
            assert isinstance(twice, Twice)
            twice.target, twice.later_ms, twice.listen = name, later_ms, published.drain
            twice.look = lambda: dump(server, scores=later_ms == 0)
            await lead_a_life(at)
            if replicas:
                await end_while_everybody_looks(at)
            assert twice.calls > 0, f"{name}.lua is never called in this life: add the situations it is for"


@pytest.mark.parametrize("later_ms", [0, 1_500], ids=["at once", "later"])
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "announce"])
async def test_a_script_that_is_run_again_after_a_lost_reply_changes_nothing(
    redis_server: RedisProcess, name: str, later_ms: int
) -> None:
    await lead_it_with_two_calls_of(name, redis_server, replicas=0, later_ms=later_ms)


@pytest.mark.parametrize("later_ms", [0, 1_500], ids=["at once", "later"])
@pytest.mark.parametrize("name", SCRIPTS)
async def test_nor_does_it_where_what_is_shown_must_be_on_replicas(
    replicated_redis: RedisProcess, name: str, later_ms: int
) -> None:
    await lead_it_with_two_calls_of(name, replicated_redis, replicas=1, later_ms=later_ms)
