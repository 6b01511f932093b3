"""One open turn per conversation (law 11); deleting one ends its turn first, and nothing of it comes back (law 12)."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from serve_app.chat.errors import ConversationNotFound, TurnInProgress
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.chat.turns import Verdict
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled, Published, Store, claim, dump, ending, ends_in, logged, new_turn, open_turn, store
from tests.support.waiting import Listening, whole

pytestmark = pytest.mark.integration
SECRET = "xyzzy-my-secret"
SLOW = Options(words=2_000, words_per_second=200)


@pytest.fixture
async def at(redis_server: RedisProcess) -> AsyncIterator[Store]:
    async with store(redis_server.url) as ports:
        yield ports


def keys_with(server: RedisProcess, *texts: str) -> list[str]:
    """Look for texts in the whole keyspace, names, values, everything; only what personalities always say is no secret."""
    found = {key: f"{key} {entry}" for key, entry in dump(server).items() if not key.startswith("aurora:personality:")}
    return [key for key, entry in found.items() if any(text in entry for text in texts)]


async def test_a_second_message_while_one_is_answered_is_refused_and_names_the_turn(at: Store) -> None:
    turn = await open_turn(at, client_id="ann")
    with pytest.raises(TurnInProgress) as refused:
        await at.turns.begin(new_turn(client_id="ann"))
    assert refused.value.turn_id == turn.turn_id
    assert refused.value.retryable


async def test_of_many_messages_at_once_one_conversation_takes_one(redis_server: RedisProcess, at: Store) -> None:
    conversation = await at.conversations.create(
        client_id="ann", personality="robbie", title="", node="aurora", timestamp="2025-10-06T12:00:00Z", unix=1, marker="m"
    )
    asked = [new_turn(client_id="ann", conversation_id=conversation.conversation_id) for _ in range(20)]
    outcomes = await asyncio.gather(*(at.turns.begin(new) for new in asked), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(TurnInProgress) == 19
    assert (await at.conversations.history(conversation.conversation_id, limit=50)).total == 1


@pytest.mark.parametrize("how", ["ended", "missing"])
async def test_a_turn_that_has_ended_or_is_missing_leaves_its_conversation_free(at: Store, how: str) -> None:
    turn = await open_turn(at, client_id="ann")
    if how == "ended":
        await at.turns.finish(turn.turn_id, token=turn.run, end=ending(turn.turn_id, ["Hi"]), tail=logged(["Hi"]), from_seq=1)
    else:
        await at.redis.delete("aurora:turn:" + turn.turn_id)
    again = await at.turns.begin(new_turn(client_id="ann"))
    assert again.conversation_id == turn.begun.conversation_id


async def test_a_client_may_have_one_open_turn_in_each_conversation(at: Store) -> None:
    first = await at.turns.begin(new_turn(client_id="ann", personality="robbie"))
    second = await at.turns.begin(new_turn(client_id="ann", personality="kristina"))
    assert first.conversation_id != second.conversation_id


async def test_deleting_ends_the_open_turn_first_and_its_follower_hears_one_end(stack: Stack, redis_server: RedisProcess) -> None:
    with Published(redis_server) as published:
        async with Listening(stack.service.ask(Ask(client_id="ann", message=f"Hello {SECRET}", options=SLOW))) as heard:
            await heard.pieces(3)
            accepted = heard.events[0].model_dump()
            await stack.service.delete_conversation(accepted["conversation_id"], client_id="ann")
            events = await heard.end(5)
        assert events[-1].type == "stopped"
        assert Assembled.of(events).proven()
        assert len(ends_in(published.drain(), accepted["turn_id"])) == 1
    with pytest.raises(ConversationNotFound):
        await stack.service.history(accepted["conversation_id"], limit=10)
    first_words = Assembled.of(events).text.split(". ")[0]
    assert keys_with(redis_server, SECRET, first_words) == []


async def test_a_tombstone_without_text_stays_for_26_hours(at: Store, redis_server: RedisProcess) -> None:
    turn = await open_turn(at, client_id="ann", content=SECRET, title=SECRET)
    await at.turns.finish(turn.turn_id, token=turn.run, end=ending(turn.turn_id, [SECRET]), tail=logged([SECRET]), from_seq=1)
    assert keys_with(redis_server, SECRET), "there is something to be deleted"
    assert await at.conversations.delete(turn.begun.conversation_id, client_id="ann") is None
    assert keys_with(redis_server, SECRET) == []
    key = "aurora:conversation:" + turn.begun.conversation_id
    assert await at.redis.hgetall(key) == {b"owner": b"ann", b"deleted": b"1", b"last_seq": b"0"}
    assert await at.redis.ttl(key) == pytest.approx(26 * 3_600, abs=5)
    assert await at.conversations.list("ann", limit=9, offset=0) == ([], 0)


async def test_nothing_that_comes_late_brings_a_deleted_conversation_back(at: Store, redis_server: RedisProcess) -> None:
    turn = await open_turn(at, client_id="ann", content=SECRET)
    await at.turns.hold(turn.turn_id, token="stop", stopping=True)
    await at.turns.finish(turn.turn_id, token="stop", end=ending(turn.turn_id, [], status="stopped"), from_seq=1)
    await at.conversations.delete(turn.begun.conversation_id, client_id="ann")
    before = dump(redis_server)
    late = logged([SECRET])
    end = ending(turn.turn_id, [SECRET])
    with Published(redis_server) as published:
        assert (await at.turns.append(turn.turn_id, token=turn.run, pieces=late))[0] is Verdict.GONE
        assert (await at.turns.finish(turn.turn_id, token=turn.run, end=end, tail=late, from_seq=1))[0] is Verdict.GONE
        with pytest.raises(ConversationNotFound):
            await at.turns.begin(new_turn(client_id="ann", conversation_id=turn.begun.conversation_id))
        assert published.drain() == []
    assert dump(redis_server) == before


async def test_a_turn_whose_conversation_vanished_ends_and_stores_nothing(at: Store, redis_server: RedisProcess) -> None:
    """Deleting ends the turn first; this is what guards against what nobody thought of."""
    turn = await open_turn(at, client_id="ann")
    await at.redis.delete("aurora:conversation:" + turn.begun.conversation_id)
    end = ending(turn.turn_id, [SECRET])
    assert (await at.turns.finish(turn.turn_id, token=turn.run, end=end, tail=logged([SECRET]), from_seq=1))[0] is Verdict.OK
    assert [key for key in keys_with(redis_server, SECRET) if not key.endswith(":log")] == []
    assert await at.redis.exists("aurora:conversation:" + turn.begun.conversation_id) == 0


async def test_a_deleted_conversation_is_not_gone_on_with(stack: Stack) -> None:
    first = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")))
    gone = first[0].model_dump()["conversation_id"]
    await stack.service.delete_conversation(gone, client_id="ann")
    again = await whole(stack.service.ask(Ask(client_id="ann", message="Hello again")))
    fresh = again[0].model_dump()["conversation_id"]
    assert re.fullmatch(r"conv_ann_\d+(-\d+)?", fresh)
    assert fresh != gone, "an id is not given again while its tombstone stands"
    assert (await stack.service.history(fresh, limit=9)).messages[0].content == "Hello again"


async def test_deleting_again_is_fine_and_somebody_else_s_is_not_found(stack: Stack) -> None:
    events = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")))
    mine = events[0].model_dump()["conversation_id"]
    for stranger in ("bob", ""):
        with pytest.raises(ConversationNotFound):
            await stack.service.delete_conversation(mine, client_id=stranger)
    assert len((await stack.service.history(mine, limit=9)).messages) == 2
    await stack.service.delete_conversation(mine, client_id="ann")
    await stack.service.delete_conversation(mine, client_id="ann")
    with pytest.raises(ConversationNotFound):
        await stack.service.delete_conversation(mine, client_id="bob")
    with pytest.raises(ConversationNotFound):
        await stack.service.delete_conversation("conv_ann_1", client_id="ann")


async def test_a_log_is_found_behind_turns_that_never_spoke(at: Store, redis_server: RedisProcess) -> None:
    turn = await open_turn(at, client_id="ann", content="Hello")
    await at.turns.finish(turn.turn_id, token=turn.run, end=ending(turn.turn_id, [SECRET]), tail=logged([SECRET]), from_seq=1)
    for _ in range(3):  # stopped before anybody claimed them: they have no log
        new = new_turn(client_id="ann")
        await at.turns.begin(new)
        await at.turns.hold(new.turn_id, token="stop", stopping=True)
        await at.turns.finish(new.turn_id, token="stop", end=ending(new.turn_id, [], status="stopped"), from_seq=1)
    await at.conversations.delete(turn.begun.conversation_id, client_id="ann")
    assert keys_with(redis_server, SECRET) == []


async def test_a_long_and_quick_conversation_leaves_no_log_behind_either(at: Store, redis_server: RedisProcess) -> None:
    conversation = ""
    for number in range(300):
        new = new_turn(client_id="ann", conversation_id=conversation, content=f"{SECRET} {number}")
        conversation = (await at.turns.begin(new)).conversation_id
        await claim(at, new.turn_id, new.token, "r")
        await at.turns.finish(new.turn_id, token="r", end=ending(new.turn_id, [SECRET]), tail=logged([SECRET]), from_seq=1)
    assert len(keys_with(redis_server, SECRET)) >= 900
    await at.conversations.delete(conversation, client_id="ann")
    assert keys_with(redis_server, SECRET) == []
