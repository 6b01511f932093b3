"""What an adversarial reviewer broke once: the bus. Each test is one of its proofs, turned around."""

import asyncio

import pytest

from serve_app.chat.bus import Subscription
from serve_app.chat.events import Event
from serve_app.state import bus as bus_module
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration
CHANNEL = "aurora:client:ann"
QUEUED = b'[{"type":"queued","turn_id":"turn_a","place":1,"estimate_seconds":1}]'
FOREIGN = {
    "an event of a later release": b'[{"type":"thinking","turn_id":"turn_a","v":2}]',
    "an event without its fields": b'[{"type":"piece","turn_id":"turn_a"}]',
    "an event among others": b'[{"type":"queued","turn_id":"turn_a","place":1,"estimate_seconds":1},5]',
    "no turn": b'[{"type":"queued"}]',
    "no list": b"{}",
    "nothing": b"[]",
    "null": b"null",
    "numbers": b"[1]",
    "a turn that is none": b'[{"type":"queued","turn_id":["turn_a"],"place":1,"estimate_seconds":1}]',
    "no JSON": b"\xff\x00 hello",
}


async def kinds(live: Subscription, timeout: float = 2.0) -> list[str] | None:
    """Return the types of the next batch; None: something may have been missed. Fails if nothing comes."""
    async with asyncio.timeout(timeout):
        batch: list[Event] | None = await live.next(60.0)
    return None if batch is None else [event.type for event in batch]


async def test_who_listens_at_the_moment_when_the_channel_is_given_up_is_not_deaf(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UNSUBSCRIBE of the one before must not overtake its SUBSCRIBE."""
    monkeypatch.setattr(bus_module, "LINGER_S", 0.0)  # a channel is given up in the next turn of the loop
    async with stack.bus.listen("ann"):
        pass

    async def listening() -> list[list[str] | None]:
        async with stack.bus.listen("ann") as live:
            heard = []
            for _ in range(3):
                assert await stack.redis.publish(CHANNEL, QUEUED) == 1, "the bus is not subscribed"
                heard.append(await kinds(live))
            return heard

    # By this detour it comes right after the timer, and before what the timer has started.
    tasks: list[asyncio.Task[list[list[str] | None]]] = []
    asyncio.get_running_loop().call_soon(lambda: tasks.append(asyncio.create_task(listening())))
    await until(lambda: tasks)
    assert await tasks[0] == [["queued"]] * 3


async def test_who_came_before_the_subscription_could_be_confirmed_is_told_when_it_is(redis_server: RedisProcess) -> None:
    """What was published between the two reached nobody: the log must be read once more."""
    async with TcpProxy(redis_server.port) as proxy, Stack(redis_server.url, bus_url=proxy.url) as here:
        async with here.bus.listen("somebody"):
            proxy.stall()
        async with here.bus.listen("ann") as live:
            assert await kinds(live) is None, "it is not subscribed yet"
            assert await here.redis.publish(CHANNEL, QUEUED) == 0
            proxy.flow()
            assert await kinds(live) is None, "it is now, and something was missed"
            assert await here.redis.publish(CHANNEL, QUEUED) == 1
            assert await kinds(live) == ["queued"]


@pytest.mark.parametrize("message", FOREIGN.values(), ids=FOREIGN.keys())
async def test_a_message_that_is_none_of_ours_sends_listeners_to_the_log_and_the_bus_goes_on(
    stack: Stack, message: bytes
) -> None:
    async with stack.bus.listen("ann") as all_turns, stack.bus.listen("ann", turn_id="turn_a") as one_turn:
        await stack.redis.publish(CHANNEL, message)
        await stack.redis.publish(CHANNEL, QUEUED)
        for live in (all_turns, one_turn):
            heard = [await kinds(live)]
            if heard == [None]:
                heard.append(await kinds(live))
            assert heard[-1] == ["queued"]
            assert heard[0] is None or live is one_turn, "what is not understood may have been ours"
        stack.bus.check()
