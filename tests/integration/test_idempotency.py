"""The same key is the same turn, on any node, during and after it; a refusal claims nothing (law 6)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.chat import ids
from serve_app.chat.errors import ChatError, ConversationNotFound, IdempotencyMismatch, Overloaded, TurnInProgress
from serve_app.chat.options import OptionLimits, Options
from serve_app.chat.service import Ask, ServiceConfig
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import (
    Assembled,
    Published,
    Store,
    claim,
    dump,
    ending,
    events_in,
    fall_due,
    logged,
    new_turn,
    store,
)
from tests.support.waiting import Listening, whole

pytestmark = pytest.mark.integration
HOUR = 3_600
SLOW = Options(words=400, words_per_second=200)


@pytest.fixture
async def at(redis_server: RedisProcess) -> AsyncIterator[Store]:
    async with store(redis_server.url) as ports:
        yield ports


async def test_a_message_sent_again_on_another_node_is_attached_to_the_first_turn(
    stack: Stack, redis_server: RedisProcess
) -> None:
    ask = Ask(client_id="ann", message="Hello", idempotency_key="k1", options=SLOW)
    async with Stack(redis_server.url, node="star") as star, Listening(stack.service.ask(ask)) as first:
        await first.pieces(3)
        second = await whole(star.service.ask(ask))
        events = await first.end()
        third = await whole(star.service.ask(ask))
    texts = {Assembled.of(heard).text for heard in (events, second, third)}
    assert len(texts) == 1
    assert {heard[0].turn_id for heard in (events, second, third)} == {events[0].turn_id}
    page = await stack.service.history(events[0].model_dump()["conversation_id"], limit=10)
    assert [message.role for message in page.messages] == ["user", "assistant"], "asked once, answered once"


async def test_a_message_sent_again_during_a_takeover_is_attached_too(at: Store) -> None:
    new = new_turn(client_id="ann", idempotency_key="k", body_hash="b")
    await at.turns.begin(new)
    await claim(at, new.turn_id, new.token, "r1")
    await fall_due(at, new.turn_id)
    await at.turns.sweep(token="s", batch=9)
    again = await at.turns.begin(new_turn(client_id="ann", idempotency_key="k", body_hash="b", node="star"))
    assert (again.attached, again.turn_id) == (True, new.turn_id)


async def test_the_same_key_with_another_body_is_refused_and_changes_nothing(stack: Stack, redis_server: RedisProcess) -> None:
    ask = Ask(client_id="ann", message="Hello", idempotency_key="k1")
    first = await whole(stack.service.ask(ask))
    bodies = [
        Ask(client_id="ann", message="Goodbye", idempotency_key="k1"),
        Ask(client_id="ann", message="Hello", idempotency_key="k1", personality="kristina"),
        Ask(client_id="ann", message="Hello", idempotency_key="k1", options=Options(words=3)),
        Ask(client_id="ann", message="Hello", idempotency_key="k1", conversation_id=first[0].model_dump()["conversation_id"]),
    ]
    before = _without_sweep(dump(redis_server))
    for body in bodies:
        with pytest.raises(IdempotencyMismatch):
            await stack.service.begin(body)
    assert _without_sweep(dump(redis_server)) == before
    assert (await stack.service.begin(ask)).turn_id == first[0].turn_id


async def test_the_key_of_one_client_is_nothing_to_another(stack: Stack) -> None:
    ann = await stack.service.begin(Ask(client_id="ann", message="Hello", idempotency_key="k1"))
    bob = await stack.service.begin(Ask(client_id="bob", message="Something else", idempotency_key="k1"))
    assert not bob.attached
    assert bob.turn_id != ann.turn_id


async def test_a_key_may_hold_a_colon_without_meaning_another_client_s(at: Store) -> None:
    first = await at.turns.begin(new_turn(client_id="ann", idempotency_key="a:b", body_hash="x"))
    second = await at.turns.begin(new_turn(client_id="ann.a", idempotency_key="b", body_hash="y"))
    assert (first.attached, second.attached) == (False, False)


async def test_of_many_that_begin_with_one_key_at_once_one_begins_and_all_are_attached(
    redis_server: RedisProcess, at: Store
) -> None:
    for key in range(10):
        senders = [new_turn(client_id="ann", idempotency_key=f"k{key}", body_hash="b", personality="robbie") for _ in range(12)]
        with Published(redis_server) as published:
            begun = await asyncio.gather(*(at.turns.begin(new) for new in senders))
            accepted = [event for event in events_in(published.drain()) if event["type"] == "accepted"]
        assert len({one.turn_id for one in begun}) == 1
        assert [one.attached for one in begun].count(False) == 1
        assert len(accepted) == 1
        (turn_id,) = {one.turn_id for one in begun}
        held = await at.turns.hold(turn_id, token="t", stopping=True)
        assert held
        await at.turns.finish(turn_id, token="t", end=ending(turn_id, [], status="stopped"), from_seq=1)


@pytest.mark.parametrize("refusal", [TurnInProgress, Overloaded, ConversationNotFound])
async def test_a_refusal_claims_nothing(redis_server: RedisProcess, at: Store, refusal: type[ChatError]) -> None:
    await at.turns.begin(new_turn(client_id="ann"))
    asked = {
        TurnInProgress: {"client_id": "ann"},
        Overloaded: {"client_id": "bob", "max_open_turns": 1},
        ConversationNotFound: {"client_id": "bob", "conversation_id": "conv_ann_1759752000"},
    }[refusal]
    before = dump(redis_server)
    with Published(redis_server) as published:
        with pytest.raises(refusal):
            await at.turns.begin(new_turn(**asked, idempotency_key="k", body_hash="b"))
        assert published.drain() == []
    assert dump(redis_server) == before
    # The key is free: later the same message, or another one, begins a turn.
    begun = await at.turns.begin(new_turn(client_id="carl", idempotency_key="k", body_hash="other"))
    assert not begun.attached


async def test_a_known_key_is_answered_even_where_a_new_turn_would_be_refused(at: Store) -> None:
    new = new_turn(client_id="ann", idempotency_key="k", body_hash="b")
    await at.turns.begin(new)
    crowded = new_turn(client_id="ann", idempotency_key="k", body_hash="b", max_open_turns=1)
    assert (await at.turns.begin(crowded)).attached, "checked before the limits"


async def test_what_the_service_itself_refuses_claims_nothing(redis_server: RedisProcess) -> None:
    async with Stack(redis_server.url, service=ServiceConfig(limits=OptionLimits(drill_options=False))) as strict:
        before = _without_sweep(dump(redis_server))
        for ask in (
            Ask(client_id="ann", message="Hello", personality="nobody", idempotency_key="k"),
            Ask(client_id="ann", message="Hello", options=Options(words=3), idempotency_key="k"),
        ):
            with pytest.raises(ChatError):
                await strict.service.begin(ask)
        assert _without_sweep(dump(redis_server)) == before


async def test_a_key_is_kept_for_26_hours_after_the_end_and_longer_while_the_turn_is_open(at: Store) -> None:
    new = new_turn(client_id="ann", idempotency_key="k", body_hash="b", deadline_ms=900_000)
    await at.turns.begin(new)
    key = "aurora:idempotency:ann:k"
    assert await at.redis.ttl(key) == pytest.approx(26 * HOUR + 900, abs=5), "an open turn cannot outlive its key"
    await claim(at, new.turn_id, new.token, "r")
    await at.redis.expire(key, 100)
    await at.turns.finish(new.turn_id, token="r", end=ending(new.turn_id, ["Hi"]), tail=logged(["Hi"]), from_seq=1)
    assert await at.redis.ttl(key) == pytest.approx(26 * HOUR, abs=5)
    assert await at.redis.ttl("aurora:turn:" + new.turn_id) == pytest.approx(26 * HOUR, abs=5)
    assert b"Hello" not in await at.redis.get(key), "a key holds no text"


async def test_after_26_hours_the_key_is_free_again(at: Store) -> None:
    new = new_turn(client_id="ann", idempotency_key="k", body_hash="b")
    await at.turns.begin(new)
    await at.redis.delete("aurora:turn:" + new.turn_id, "aurora:idempotency:ann:k")
    again = await at.turns.begin(new_turn(client_id="ann", idempotency_key="k", body_hash="b"))
    assert not again.attached
    assert ids.is_turn_id(again.turn_id)


def _without_sweep(keys: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in keys.items() if name != "aurora:sweep"}
