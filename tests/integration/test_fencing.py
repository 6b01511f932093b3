"""Who lost a turn can write nothing more (law 3), and a turn ends once, whoever races to end it (law 1)."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable

import pytest

from serve_app.chat.ending import fail_turn, stop_turn
from serve_app.chat.errors import AttemptsExhausted
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.chat.turns import Verdict
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import (
    Assembled,
    Open,
    Published,
    Store,
    claim,
    dump,
    ending,
    ends_in,
    events_in,
    fall_due,
    logged,
    lose_after,
    open_turn,
    plan,
    store,
)
from tests.support.waiting import Listening

pytestmark = pytest.mark.integration
ROUNDS = 60


@pytest.fixture
async def at(redis_server: RedisProcess) -> AsyncIterator[Store]:
    async with store(redis_server.url) as ports:
        yield ports


async def taken_over(at: Store) -> Open:
    """A turn that said two pieces, whose run then lost it to a second attempt on another node."""
    turn = await open_turn(at)
    await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["One, ", "two, "]))
    await fall_due(at, turn.turn_id)
    (due,) = (await at.turns.sweep(token="s", batch=9)).due
    await claim(at, turn.turn_id, due.token, "the-second-run", node="star")
    return turn


async def try_everything(at: Store, turn: Open, token: str) -> set[Verdict]:
    """Do all that a run can do, with `token`."""
    attempt = await at.turns.append(turn.turn_id, token=token, pieces=logged(["late"], after=2))
    ended = await at.turns.finish(
        turn.turn_id,
        token=token,
        end=ending(turn.turn_id, ["One, ", "two, ", "late"]),
        tail=logged(["late"], after=2),
        from_seq=3,
    )
    held = await at.turns.hold(turn.turn_id, token=token, stopping=False, mine=token)
    again = await at.turns.redispatch(turn.turn_id, dispatch=token, run=token, token="mine-again")
    claimed = await at.turns.claim(turn.turn_id, dispatch=token, run="mine-now", node="aurora", plan=plan(), window=9)
    assert await at.turns.renew([(turn.turn_id, token)]) == {token}
    return {attempt[0], ended[0], *(v for v in (held, again, claimed) if isinstance(v, Verdict))}


@pytest.mark.parametrize("which", ["run", "dispatch"])
async def test_a_run_whose_turn_was_taken_over_changes_no_byte_and_says_nothing(
    redis_server: RedisProcess, at: Store, which: str
) -> None:
    turn = await taken_over(at)
    before = dump(redis_server)
    with Published(redis_server) as published:
        said = await try_everything(at, turn, turn.run if which == "run" else turn.dispatch)
        assert published.drain() == []
    assert said == {Verdict.SUPERSEDED}
    assert dump(redis_server) == before


async def test_after_the_end_nobody_changes_a_byte_not_even_the_one_who_ended_it(redis_server: RedisProcess, at: Store) -> None:
    turn = await open_turn(at)
    await at.turns.finish(turn.turn_id, token=turn.run, end=ending(turn.turn_id, ["Hi"]), tail=logged(["Hi"]), from_seq=1)
    before = dump(redis_server)
    with Published(redis_server) as published:
        assert await try_everything(at, turn, "another") == {Verdict.GONE}
        other = ending(turn.turn_id, ["Hi", " there"], status="stopped")
        assert (await at.turns.finish(turn.turn_id, token=turn.run, end=other, from_seq=2))[0] is Verdict.OK, "its own lost reply"
        assert published.drain() == []
    assert dump(redis_server) == before


async def test_the_token_decides_where_two_runs_hold_the_same_attempt_number(redis_server: RedisProcess, at: Store) -> None:
    turn = await taken_over(at)
    # A failover lost the second claim: the number goes back, and is given again to somebody else.
    await lose_after(at, turn.turn_id, seq=2, attempt=1, token="d9")
    again = await claim(at, turn.turn_id, "d9", "the-other-second-run", node="vengeance")
    assert again.attempt == 2
    before = dump(redis_server)
    said = await try_everything(at, turn, "the-second-run")
    assert said == {Verdict.SUPERSEDED}
    assert dump(redis_server) == before


async def test_a_stop_fences_the_writer_at_once(redis_server: RedisProcess, at: Store) -> None:
    turn = await open_turn(at)
    await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["One, "]))
    held = await at.turns.hold(turn.turn_id, token="stop", stopping=True)
    assert not isinstance(held, Verdict)
    assert [piece.text for piece in held.pieces] == ["One, "]
    late = await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["two"], after=1))
    assert late[0] is Verdict.SUPERSEDED


async def test_nothing_is_heard_of_a_stopped_turn_after_its_end(stack: Stack, redis_server: RedisProcess) -> None:
    with Published(redis_server) as published:
        ask = Ask(client_id="ann", message="Hello", options=Options(words=2_000, words_per_second=400))
        async with Listening(stack.service.ask(ask)) as heard:
            await heard.pieces(3)
            turn_id = heard.events[0].turn_id
            snapshot = await stack.service.stop(turn_id)
            events = await heard.end()
        assert snapshot.reply is not None
        await stack.generator.__aexit__()  # whatever the run still had to say, it has said
        assert events_in(published.drain(), turn_id)[-1]["type"] == "stopped"
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == snapshot.reply.content
    assert snapshot.reply.status == "stopped"


@pytest.mark.parametrize("holder", ["run", "router"])
async def test_a_turn_ends_once_whoever_races_to_end_it(redis_server: RedisProcess, holder: str) -> None:
    """The run finishes, the user stops and deletes, a router fails it, all at the same moment, again and again."""
    won: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as exits:
        nodes = [await exits.enter_async_context(store(redis_server.url)) for _ in range(5)]
        with Published(redis_server) as published:
            for _ in range(ROUNDS):
                turn = await open_turn(nodes[0])
                await nodes[0].turns.append(turn.turn_id, token=turn.run, pieces=logged(["One, "]))
                mine = turn.run
                if holder == "router":
                    await fall_due(nodes[0], turn.turn_id)
                    ((mine,),) = [[due.token] for due in (await nodes[0].turns.sweep(token="s", batch=9)).due]
                published.drain()
                await _race(nodes, turn, mine)
                ends = ends_in(published.drain(), turn.turn_id)
                assert len(ends) == 1, ends
                kept = (await nodes[0].turns.read(turn.turn_id)).end
                assert kept is not None
                assert kept.type == ends[0]["type"]
                assert kept.receipt.model_dump() == ends[0]["receipt"]
                page = await nodes[0].conversations.list(turn.client_id, limit=9, offset=0)
                assert page == ([], 0), "deleting won in the end"
                won[kept.type] += 1
    print(f"\nwho ended it, held by the {holder}:", dict(won))
    assert won["stopped"], won
    assert len(won) >= 2, f"the race is none: {won}"


async def _race(nodes: list[Store], turn: Open, mine: str) -> None:
    whole = ending(turn.turn_id, ["One, ", "two."])
    done = nodes[1].turns.finish(turn.turn_id, token=turn.run, end=whole, tail=logged(["two."], after=1), from_seq=2)
    failed = fail_turn(nodes[2].turns, turn.turn_id, AttemptsExhausted(), mine=mine)
    racers = [done, stop_turn(nodes[3].turns, turn.turn_id), failed, _delete(nodes[4], turn)]
    await asyncio.gather(*map(_at_any_moment, racers))


async def _at_any_moment(racer: Awaitable[object]) -> None:
    await asyncio.sleep(random.random() * 0.004)
    await racer


async def _delete(at: Store, turn: Open) -> None:
    while open_turn_id := await at.conversations.delete(turn.begun.conversation_id, client_id=turn.client_id):
        await stop_turn(at.turns, open_turn_id)
