"""Following a turn from anywhere, at any time: live, late, again, and after its log is gone (law 2)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.chat.errors import TurnNotFound
from serve_app.chat.events import Accepted, End, Event, Piece, Started
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.state import keys
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled, ending, logged, new_turn, open_turn, undisturbed
from tests.support.waiting import Listening, until, whole

pytestmark = pytest.mark.integration
MESSAGE = "Tell me about the sea"
SLOW = Options(words=150, words_per_second=150)


@pytest.fixture
async def star(redis_server: RedisProcess) -> AsyncIterator[Stack]:
    """Another node over the same Redis."""
    async with Stack(redis_server.url, node="star") as running:
        yield running


def joined(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def end_of(events: list[Event]) -> End:
    assert isinstance(events[-1], End)
    return events[-1]


async def test_followers_on_every_node_from_every_moment_hear_the_same_text(stack: Stack, star: Stack) -> None:
    async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as first:
        turn_id = (await first.first("accepted")).turn_id
        followers = []
        for count in (1, 4, 8):
            await first.pieces(count)
            followers += [asyncio.create_task(whole(node.service.follow(turn_id))) for node in (stack, star)]
        heard = [await first.end(), *[await follower for follower in followers]]
    heard.append(await whole(star.service.follow(turn_id)))
    for events in heard:
        said = Assembled.of(events)
        assert said.proven()
        assert said.text == await undisturbed(MESSAGE, SLOW) == end_of(events).content
        assert [type(event) for event in events].count(Started) == 1
        assert isinstance(events[0], Accepted)


async def test_a_follower_that_resumes_gets_the_rest_and_nothing_twice(stack: Stack, star: Stack) -> None:
    async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as first:
        turn_id = (await first.first("accepted")).turn_id
        for node, count in ((star, 3), (stack, 6), (star, 9)):
            await first.pieces(count)
            mine = [event for event in first.events if isinstance(event, Piece)][:count]
            rest = await whole(node.service.follow(turn_id, after=count))
            assert next(event.seq for event in rest if isinstance(event, Piece)) == count + 1
            assert joined(mine + rest) == await undisturbed(MESSAGE, SLOW)
            assert not any(isinstance(event, Accepted | Started) for event in rest), "it knows that already"


async def test_a_turn_can_be_followed_before_anybody_has_claimed_it(stack: Stack) -> None:
    new = new_turn(client_id="ann")
    await stack.turns.begin(new)
    async with Listening(stack.service.follow(new.turn_id)) as heard:
        await heard.first("accepted")
        await stack.take_turn(new.turn_id, token=new.token, personality="robbie")
        events = await heard.end()
    assert [event.type for event in events][:3] == ["accepted", "started", "piece"]
    assert Assembled.of(events).proven()


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_when_the_log_is_gone_the_whole_message_comes_and_says_so(stack: Stack, after: int) -> None:
    events = await whole(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW)))
    await stack.redis.delete(keys.log(events[0].turn_id))
    again = await whole(stack.service.follow(events[0].turn_id, after=after))
    assert [event.type for event in again if event.type != "accepted"] == ["done"], "no piece, and no silent hole"
    assert end_of(again).recovered is False
    assert end_of(again).content == end_of(events).content
    assert end_of(again).receipt == end_of(events).receipt


async def test_who_has_every_piece_already_only_hears_the_end_even_when_the_log_is_gone(stack: Stack) -> None:
    events = await whole(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW)))
    await stack.redis.delete(keys.log(events[0].turn_id))
    again = await whole(stack.service.follow(events[0].turn_id, after=end_of(events).receipt.pieces))
    assert (again[-1].type, end_of(again).recovered) == ("done", True)


@pytest.mark.parametrize("status", ["stopped", "failed"])
@pytest.mark.parametrize("kept", [True, False], ids=["log kept", "log gone"])
async def test_a_turn_that_did_not_get_to_its_end_is_followed_to_what_was_said(stack: Stack, status: str, kept: bool) -> None:
    turn = await open_turn(stack, client_id="ann")
    end = ending(turn.turn_id, ["So ", "far"], status=status)
    await stack.turns.finish(turn.turn_id, token=turn.run, end=end, tail=logged(["So ", "far"]), from_seq=1)
    if not kept:
        await stack.redis.delete(keys.log(turn.turn_id))
    events = await whole(stack.service.follow(turn.turn_id))
    assert events[-1].type == status
    assert (end_of(events).content, end_of(events).recovered) == ("So far", kept)
    assert joined(events) == ("So far" if kept else "")


async def test_the_log_is_kept_as_long_as_the_turn_is_open_and_ten_minutes_longer(stack: Stack) -> None:
    turn = await open_turn(stack, client_id="ann")
    await stack.turns.append(turn.turn_id, token=turn.run, pieces=logged(["Hi"]))
    assert await stack.redis.ttl(keys.log(turn.turn_id)) == -1
    await stack.turns.finish(turn.turn_id, token=turn.run, end=ending(turn.turn_id, ["Hi"]), from_seq=2)
    assert await stack.redis.ttl(keys.log(turn.turn_id)) == pytest.approx(600, abs=5)


async def test_a_turn_that_nobody_knows_is_refused_before_the_first_event(stack: Stack) -> None:
    with pytest.raises(TurnNotFound):
        await anext(stack.service.follow("turn_00000000000000000000000000"))


async def test_a_follower_that_leaves_does_not_stop_the_turn(stack: Stack) -> None:
    async with Listening(stack.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as heard:
        turn_id = (await heard.first("accepted")).turn_id
        await heard.pieces(2)

    async def ended() -> object:
        return (await stack.service.turn(turn_id)).end

    end = await until(ended, 10)
    assert isinstance(end, End)
    assert end.type == "done"


async def test_events_of_a_client_s_other_turns_do_not_mix_in(stack: Stack) -> None:
    asks = [Ask(client_id="ann", message=MESSAGE, personality=name, options=SLOW) for name in ("robbie", "kristina", "allanbot")]
    for ask, events in zip(asks, await asyncio.gather(*(whole(stack.service.ask(ask)) for ask in asks)), strict=True):
        assert {event.turn_id for event in events} == {events[0].turn_id}
        assert Assembled.of(events).text == await undisturbed(MESSAGE, SLOW, ask.personality)
