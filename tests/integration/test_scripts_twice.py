"""A lost reply is not a lost write: any script, run again with the same arguments, changes nothing (law 9).

One life of turns and conversations calls every script in many situations. For each script, that life is led once with
every call of this script made twice: as after a reply that was lost.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import serve_app.state
from serve_app.chat.errors import ChatError
from serve_app.chat.events import Queued
from serve_app.state.scripts import Scripts
from tests.support.redis_process import RedisProcess
from tests.support.turn_tools import (
    FAKE_CLOCK,
    NOON,
    Published,
    Store,
    claim,
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
    "sweep": lambda first, second: second == [],  # what was handed out is leased now; what got lost is due one lease later
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

    async def run(self, name: str, *args: str | int | bytes, patience_s: float | None = None) -> Any:
        first = await super().run(name, *args, patience_s=patience_s)
        if name != self.target:
            return first
        self.calls += 1
        before = self.look()
        self.listen()
        await self._redis.incrby("test:clock", self.later_ms)
        second = await super().run(name, *args, patience_s=patience_s)
        told = [event for _, batch in self.listen() for event in (batch if isinstance(batch, list) else [batch])]
        assert {event["type"] for event in told} <= TELLS_AGAIN.get(name, set()), told
        assert self.look() == before, f"{name}{args} changed something when it came again"
        same = ANSWERS_DIFFERENTLY.get(name)
        if same is None and not (name == "claim" and self.later_ms):  # a claim says how much time is left
            assert second == first, f"{name}{args} answered differently when it came again"
        assert same is None or second == first or same(first, second), (first, second)
        return first


async def lead_a_life(at: Store) -> None:
    """Call every script, in as many situations as there are."""
    turns, conversations = at.turns, at.conversations
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
    (due,) = await turns.sweep(token="sweep-1", batch=10)
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
    tired = new_turn(client_id="ann")
    await turns.begin(tired)
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


@pytest.mark.parametrize("later_ms", [0, 1_500], ids=["at once", "later"])
@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_script_that_is_run_again_after_a_lost_reply_changes_nothing(
    redis_server: RedisProcess, name: str, later_ms: int
) -> None:
    with Published(redis_server) as published:
        async with store(redis_server.url, clock=FAKE_CLOCK, kind=Twice) as at:
            await at.set_clock(NOON)
            twice = at.scripts
            assert isinstance(twice, Twice)
            twice.target, twice.later_ms, twice.listen = name, later_ms, published.drain
            twice.look = lambda: dump(redis_server, scores=later_ms == 0)
            await lead_a_life(at)
            assert twice.calls > 0, f"{name}.lua is never called in this life: add the situations it is for"
