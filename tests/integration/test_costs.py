"""What a turn and a page of history cost, in Redis commands and bytes, does not grow with what is stored."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import redis

from serve_app.chat.generate import GeneratorConfig
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.chat.supervise import Supervisor, SupervisorConfig
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities
from tests.support.waiting import whole

pytestmark = pytest.mark.integration
NEVER_S = 3_600.0
"""No beat of a router or a generator disturbs the counting."""
WINDOW = 2
"""Messages that enter a prompt, and a page: as many as the smallest conversation here has."""
HEARTBEAT = {"ping", "info", "monitor", "replconf"}
"""The bus's own PING, that of replicas, and the counting itself."""


@contextlib.asynccontextmanager
async def quiet_stack(url: str, window: int, *, replicas: int = 0) -> AsyncIterator[Stack]:
    stack = Stack(url, replicas=replicas, run=GeneratorConfig(beat_s=NEVER_S, history_messages=window))
    stack.supervisor = Supervisor(stack.turns, stack.pool, personalities(), SupervisorConfig(beat_s=NEVER_S))
    async with stack:
        yield stack


async def ask(stack: Stack, client_id: str, conversation_id: str = "") -> str:
    """Have a reply of one piece; return its conversation."""
    asked = Ask(client_id=client_id, message="Hello", conversation_id=conversation_id, options=Options(words=5))
    events = await whole(stack.service.ask(asked))
    assert [event.type for event in events] == ["accepted", "started", "piece", "done"]
    return str(events[0].model_dump()["conversation_id"])


def fill(server: RedisProcess, template: str, owner: str, *, conversations: int, messages: int) -> None:
    """Copy a conversation that Aurora has stored, byte by byte, as often and as long as wanted."""
    with redis.Redis(port=server.port, protocol=2) as client:
        record = client.hgetall("aurora:conversation:" + template)
        stored = [client.get(f"aurora:message:{template}:{seq}") for seq in (1, 2)]
        for first in range(0, conversations, 100):
            with client.pipeline(transaction=False) as pipe:
                for number in range(first, min(first + 100, conversations)):
                    name = f"conv_{owner}_{1_000_000_000 + number}"
                    pipe.hset("aurora:conversation:" + name, mapping={**record, b"last_seq": messages, b"owner": owner})
                    pipe.zadd("aurora:conversations:" + owner, {name: 1_700_000_000_000 + number})
                    for seq in range(1, messages + 1):
                        pipe.set(f"aurora:message:{name}:{seq}", stored[(seq - 1) % 2])
                pipe.execute()


@dataclass(frozen=True)
class Cost:
    """What something cost: commands that Redis ran, in scripts too; those that were sent; bytes both ways."""

    commands: Counter[str]
    sent: tuple[str, ...]
    bytes: int


async def cost_of(server: RedisProcess, action: Callable[[], Awaitable[object]]) -> Cost:
    """Do it a few times: for the bytes, and for the commands."""
    with server.client() as client:
        sizes = []
        for _ in range(3):
            before = client.info("stats")
            await action()
            after = client.info("stats")
            sizes.append(sum(after[name] - before[name] for name in ("total_net_input_bytes", "total_net_output_bytes")))
        commands: Counter[str] = Counter()
        sent = []
        with client.monitor() as monitor:
            await action()
            with server.client() as marker:
                marker.echo("that was it")
            while (seen := monitor.next_command())["command"] != "ECHO that was it":
                name = seen["command"].split(" ", 1)[0].lower()
                if name not in HEARTBEAT:
                    commands[name] += 1
                    if seen["client_type"] != "lua":
                        sent.append(name)
    return Cost(commands, tuple(sent), min(sizes))


async def costs(server: RedisProcess, *, conversations: int, messages: int, window: int = WINDOW) -> dict[str, Cost]:
    """Fill a Redis so far, and count what everything costs there."""
    with server.client() as client:
        client.flushall()
    async with quiet_stack(server.url, window) as stack:
        fill(server, await ask(stack, "template"), "ann", conversations=conversations, messages=messages)
        mine = f"conv_ann_{1_000_000_000 + conversations // 2}"
        await ask(stack, "ann", mine)  # scripts are loaded, the subscription stands
        return {
            "a turn": await cost_of(server, lambda: ask(stack, "ann", mine)),
            "a page": await cost_of(server, lambda: stack.service.history(mine, limit=window)),
            "an older page": await cost_of(server, lambda: stack.service.history(mine, limit=window, before=window + 1)),
            "a list": await cost_of(server, lambda: stack.service.conversations("ann", limit=10, offset=0)),
        }


@pytest.mark.timeout(180)
async def test_nothing_costs_more_with_2000_conversations_of_50_messages(own_redis: RedisProcess) -> None:
    few = await costs(own_redis, conversations=10, messages=2)
    many = await costs(own_redis, conversations=2_000, messages=50)
    for what, cost in many.items():
        print(f"\n{what}: {cost.sent}, {sum(cost.commands.values())} commands, {few[what].bytes} → {cost.bytes} bytes", end="")
        assert cost.commands == few[what].commands, what
        assert cost.sent == few[what].sent, what
        assert cost.bytes == pytest.approx(few[what].bytes, rel=0.02), what
        assert not {"keys", "scan", "hscan", "sscan", "zscan"} & set(cost.commands), what


@pytest.mark.timeout(180)
async def test_a_turn_in_a_very_long_conversation_costs_what_one_in_a_long_one_does(own_redis: RedisProcess) -> None:
    """With as many messages in the prompt as by default."""
    window = GeneratorConfig().history_messages
    long = (await costs(own_redis, conversations=2, messages=window, window=window))["a turn"]
    very_long = (await costs(own_redis, conversations=2, messages=50 * window, window=window))["a turn"]
    assert very_long.commands == long.commands
    assert very_long.bytes == pytest.approx(long.bytes, rel=0.02)


async def test_a_whole_turn_of_one_piece_takes_at_most_six_round_trips(own_redis: RedisProcess) -> None:
    async with quiet_stack(own_redis.url, WINDOW) as stack:
        await ask(stack, "somebody")  # scripts are loaded, connections stand
        clients = iter(f"client{number}" for number in range(100))
        cost = await cost_of(own_redis, lambda: ask(stack, next(clients)))
    print(f"\nround trips of a whole turn of one piece, of a client never seen before: {len(cost.sent)} {cost.sent}")
    assert 0 < len(cost.sent) <= 6


async def test_waiting_for_a_replica_costs_a_whole_turn_one_round_trip_more(replicated_redis: RedisProcess) -> None:
    sent = {}
    for replicas in (0, 1):
        async with quiet_stack(replicated_redis.url, WINDOW, replicas=replicas) as stack:
            conversation = await ask(stack, f"ann{replicas}")  # scripts are loaded, connections and the subscription stand
            sent[replicas] = (await cost_of(replicated_redis, lambda: ask(stack, f"ann{replicas}", conversation))).sent  # noqa: B023
    print(f"\nround trips of a whole turn: {sent[0]}; with a replica: {sent[1]}, each `wait` on its way with what is before it")
    assert sent[0] == ("evalsha",) * 3  # begin, claim, finish
    assert sent[1] == ("evalsha", "wait", "evalsha", "evalsha", "wait", "evalsha")  # … announce


async def test_sweeping_costs_nothing_for_each_turn_that_is_not_due(own_redis: RedisProcess) -> None:
    async with quiet_stack(own_redis.url, WINDOW) as stack:
        few = await cost_of(own_redis, lambda: stack.turns.sweep(token="s", batch=64))
        seconds, _ = await stack.redis.time()
        await stack.redis.zadd("aurora:turns:open", {f"turn_{number}": (seconds + 2) * 1_000 for number in range(2_000)})
        many = await cost_of(own_redis, lambda: stack.turns.sweep(token="s", batch=64))
    assert many.commands == few.commands
