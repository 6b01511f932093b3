"""A client of the seed's kind asks over a WebSocket and can neither resume nor ask again: what it missed is owed to it."""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.turns import RecentTurn
from tests.support.clients import Device, paced
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def nodes(stack: Stack, redis_server: RedisProcess) -> AsyncIterator[tuple[str, str]]:
    """The addresses of two nodes, aurora and star, over one Redis."""
    async with Stack(redis_server.url, node="star") as star, stack.serving() as here, star.serving() as there:
        yield here, there


async def begun(stack: Stack) -> RecentTurn:
    """Wait until ann has asked; return her one turn."""
    (turn,) = await until(lambda: stack.turns.recent_turns("ann"))
    return turn


async def ended(stack: Stack, client_id: str) -> str:
    """Wait until the client's one turn has ended; return its id."""

    async def turn_ids() -> list[str]:
        return [turn.turn_id for turn in await stack.turns.recent_turns(client_id) if not turn.is_open]

    (turn_id,) = await until(turn_ids)
    return turn_id


async def is_told_nothing_of(turn_id: str, base: str) -> None:
    """Connect as ann: what is said first answers a question that is asked there, much later than an old answer would come."""
    async with Device(base, "ann") as device:
        await device.chat("And now?", options=paced(10, 40))
        assert (await device.next())["turn_id"] != turn_id


async def test_a_client_of_the_seeds_kind_gets_the_answer_that_came_while_it_was_away_once(
    stack: Stack, nodes: tuple[str, str]
) -> None:
    here, there = nodes
    async with Device(here, "ann") as device:
        await device.chat("Hello", options=paced(20, 40))
        await until(lambda: stack.turns.recent_turns("ann"))
        device.socket.transport.abort()
    turn_id = await ended(stack, "ann")
    async with Device(there, "ann") as back:
        end = await back.next()
        assert (end["type"], end["turn_id"], end["node"]) == ("done", turn_id, "aurora")
        assert end["content"] == (await stack.turns.read(turn_id)).reply.content
        assert await back.alive() == []
    for base in nodes:
        await is_told_nothing_of(turn_id, base)


async def test_who_was_given_the_answer_is_not_given_it_again(stack: Stack, nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann") as device:
        await device.chat("Hello", options=paced(40, 40))
        await until(lambda: stack.turns.recent_turns("ann"))
        async with Device(there, "ann") as other:  # one that found the turn open
            end = await device.next()
            assert end == await other.next()
    for base in nodes:
        await is_told_nothing_of(end["turn_id"], base)


@pytest.mark.parametrize("more", [{"stream": True}, {"message_id": "m1"}], ids=["streaming", "named"])
async def test_a_client_that_can_come_back_to_its_turn_by_itself_is_told_nothing_unasked(
    stack: Stack, nodes: tuple[str, str], more: dict[str, object]
) -> None:
    here, there = nodes
    async with Device(here, "ann") as device:
        await device.chat("Hello", options=paced(20, 40), **more)
        await until(lambda: stack.turns.recent_turns("ann"))
        device.socket.transport.abort()
    await is_told_nothing_of(await ended(stack, "ann"), there)


async def test_a_plain_device_that_was_sent_the_end_is_not_sent_it_again_though_another_one_asked(
    stack: Stack, nodes: tuple[str, str]
) -> None:
    here, there = nodes
    async with Device(there, "ann") as listening:
        await listening.alive()
        async with Device(here, "ann") as asking:
            await asking.chat("Hello", options=paced(20, 40))
            await begun(stack)
            asking.socket.transport.abort()
        end = await listening.next()
    await is_told_nothing_of(end["turn_id"], there)


async def test_a_streaming_device_neither_takes_the_end_from_who_asked_nor_hears_it_twice(
    stack: Stack, nodes: tuple[str, str]
) -> None:
    here, there = nodes
    async with Device(here, "ann") as asking, Device(there, "ann", query="?stream=true") as listening:
        await listening.alive()
        await asking.chat("Hello", options=paced(20, 40))
        piece = (await listening.until("piece"))[-1]
        asking.socket.transport.abort()
        listening.socket.transport.abort()
    turn_id = await ended(stack, "ann")
    async with Device(there, "ann", query="?stream=true") as listening:
        assert await listening.alive() == []
        await listening.send(type="resume", turn_id=turn_id, after=piece["seq"], attempt=1)
        frames = await listening.until("done")
        assert frames[0]["seq"] == piece["seq"] + 1
        await listening.chat("And now?", options=paced(5, 40))
        assert {frame["turn_id"] for frame in await listening.until("done")}.isdisjoint({turn_id})
    async with Device(here, "ann") as back:
        assert (await back.next())["turn_id"] == turn_id


@pytest.mark.parametrize("how", ["stopped", "overdue", "without its personality"])
async def test_an_end_that_came_before_any_run_is_owed_too(stack: Stack, nodes: tuple[str, str], how: str) -> None:
    here, there = nodes

    async def takes_nothing(turn_id: str, *, token: str, personality: str, warm: str = "") -> None: ...

    stack.service._dispatcher.take_turn = takes_nothing  # type: ignore[method-assign]
    async with Device(here, "ann") as device:
        await device.chat("Hello")
        turn = await begun(stack)
        device.socket.transport.abort()
    if how == "stopped":
        await stack.service.stop(turn.turn_id)
    else:
        field = {"deadline": 1} if how == "overdue" else {"personality": "nobody"}
        await stack.redis.hset("aurora:turn:" + turn.turn_id, mapping=field)
        await stack.redis.zadd("aurora:turns:open", {turn.turn_id: 0})
    await ended(stack, "ann")
    async with Device(there, "ann") as back:
        end = await back.next()
        assert (end["turn_id"], end["type"]) == (turn.turn_id, "stopped" if how == "stopped" else "failed")


async def test_who_closes_the_connection_wants_no_answer_any_more(stack: Stack, nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann") as device:
        await device.chat("Hello", options=paced(20, 40))
        await begun(stack)
    await is_told_nothing_of(await ended(stack, "ann"), there)


async def test_several_ends_are_given_in_the_order_in_which_they_were_asked_for(stack: Stack, nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann") as device:
        asked = []
        for words in (400, 1) * 4:  # reading back a long one takes longer than a short one
            await device.chat("Hello", options=paced(words, 4_000))
            asked.append((await device.next())["turn_id"])
    for turn_id in asked:
        await stack.redis.hset("aurora:turn:" + turn_id, "undelivered", "1")
    async with Device(there, "ann") as back:
        assert [(await back.next())["turn_id"] for _ in asked] == asked


async def test_an_answer_whose_conversation_was_deleted_is_not_given_empty(stack: Stack, nodes: tuple[str, str]) -> None:
    here, there = nodes
    async with Device(here, "ann") as device:
        await device.chat("Hello", options=paced(20, 40))
        await begun(stack)
        device.socket.transport.abort()
    turn_id = await ended(stack, "ann")
    await stack.service.delete_conversation((await stack.service.turn(turn_id)).conversation_id, client_id="ann")
    await is_told_nothing_of(turn_id, there)
