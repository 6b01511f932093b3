"""Turns at the level of the store: made, dumped, listened to and assembled, the way tests of the laws need it."""

import contextlib
import functools
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from redis.asyncio import Redis

from serve_app.chat import ids
from serve_app.chat.engine import Prefix, Prompt, PromptMessage
from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.events import TERMINAL, Done, End, Event, Failed, Piece, Receipt, Rewind, Stopped, Takeover
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.turns import Begun, Claim, LoggedPiece, NewTurn, Plan
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine
from serve_app.state.connection import connect
from serve_app.state.conversations import RedisConversations
from serve_app.state.nodes import RedisNodes
from serve_app.state.scripts import Scripts
from serve_app.state.sessions import RedisSessions
from serve_app.state.turns import RedisTurns
from tests.support.redis_process import RedisProcess
from tests.support.stack import personalities

FAKE_CLOCK = "local function now_ms() return tonumber(redis.call('GET', 'test:clock')) end"
"""Replaces `_clock.lua`: the time is what a test has written to the key `test:clock`."""
NO_STATE = ("test:clock", "aurora:barrier")
NOON = 1_760_000_000_000
_numbers = itertools.count(1)


class Ports(Protocol):
    """Where turns are kept: a `Store`, or a whole `Stack`."""

    turns: RedisTurns
    redis: Redis


class Store:
    """All ports over one client, hence one connection for each call in flight."""

    def __init__(self, redis: Redis, scripts: Scripts) -> None:
        self.redis = redis
        self.scripts = scripts
        self.turns = RedisTurns(scripts)
        self.conversations = RedisConversations(scripts)
        self.sessions = RedisSessions(scripts)
        self.nodes = RedisNodes(scripts)

    async def set_clock(self, ms: int) -> None:
        await self.redis.set("test:clock", ms)


@contextlib.asynccontextmanager
async def store(
    url: str, *, clock: str | None = None, kind: type[Scripts] = Scripts, replicas: int = 0, patience_s: float = 10.0
) -> AsyncIterator[Store]:
    """Give the ports over the Redis at `url`."""
    redis = connect(url, replicas=replicas)
    try:
        yield Store(redis, kind(redis, clock=clock, replicas=replicas, patience_s=patience_s))
    finally:
        await redis.aclose()


class DiesBefore(Scripts):
    """The scripts of a process that is gone before it can run a certain one."""

    def __init__(self, name: str, redis: Redis, *, replicas: int, clock: str | None = None) -> None:
        super().__init__(redis, replicas=replicas, clock=clock)
        self._never = name

    async def run(self, name: str, *args: Any, **options: Any) -> Any:
        if name == self._never:
            raise StoreUnavailable("The process is gone.")
        return await super().run(name, *args, **options)


def new_turn(**asked: Any) -> NewTurn:
    """Return a message of a client of its own, with a new turn and token."""
    facts: dict[str, Any] = {
        "turn_id": ids.new_turn_id(), "token": ids.new_token(), "client_id": f"ann{next(_numbers)}", "content": "Hello Robbie!",
        "node": "aurora", "timestamp": "2025-10-06T12:00:00Z", "personality": "", "default_personality": "robbie",
        "unix": 1_759_752_000, "title": "Hello Robbie!",
    }  # fmt: skip
    return NewTurn(**{**facts, **asked})


@functools.cache
def plan(pool: str = "scripted", personality: str = "robbie") -> Plan:
    """Return what a router would plan."""
    return Plan(pool, personalities().pinned(personality))


def logged(texts: Sequence[str], *, after: int = 0, attempt: int = 1) -> list[LoggedPiece]:
    """Return pieces of these texts, numbered after `after`."""
    return [LoggedPiece(seq, attempt, text) for seq, text in enumerate(texts, start=after + 1)]


def ending(turn_id: str, texts: Sequence[str], *, status: str = "done", **facts: Any) -> End:
    """Return an end that fits a reply of these pieces."""
    kind = {"done": Done, "failed": Failed, "stopped": Stopped}[status]
    if status == "failed":
        facts = {"code": "engine_error", "message": "The engine failed.", "retryable": True, **facts}
    content, receipt = "".join(texts), Receipt.of(texts)
    return kind.model_validate(
        {
            "turn_id": turn_id,
            "content": content,
            "receipt": receipt,
            "timestamp": "2025-10-06T12:00:09Z",
            "personality": "robbie",
            **facts,
        }
    )


@dataclass(frozen=True)
class Open:
    """A turn that a run has claimed."""

    turn_id: str
    dispatch: str
    run: str
    begun: Begun
    client_id: str


async def claim(at: Ports, turn_id: str, dispatch: str, run: str = "", node: str = "aurora") -> Claim:
    """Claim a turn, which must be possible."""
    claimed = await at.turns.claim(turn_id, dispatch=dispatch, run=run or ids.new_token(), node=node, plan=plan(), window=60)
    assert isinstance(claimed, Claim), claimed
    return claimed


async def open_turn(at: Ports, **asked: Any) -> Open:
    """Begin a turn and claim it."""
    new, run = new_turn(**asked), ids.new_token()
    begun = await at.turns.begin(new)
    await claim(at, new.turn_id, new.token, run)
    return Open(new.turn_id, new.token, run, begun, new.client_id)


async def close_turn(at: Ports, turn: Open, texts: Sequence[str], *, clock: str | None = None) -> End:
    """Store the end of a turn and die before showing it: it is `closing` then, and the end is on the replicas."""
    end = ending(turn.turn_id, texts)
    turns = RedisTurns(DiesBefore("announce", at.redis, replicas=1, clock=clock))
    with pytest.raises(StoreUnavailable, match="gone"):
        await turns.finish(turn.turn_id, token=turn.run, end=end, tail=logged(texts), from_seq=1)
    return end


async def fall_due(at: Store, *turn_ids: str) -> None:
    """Let the leases of these turns lapse, while somebody sweeps as usual."""
    await at.turns.sweep(token="tick", batch=0)
    if turn_ids:
        await at.redis.zadd("aurora:turns:open", dict.fromkeys(turn_ids, 0))


async def lose_after(at: Ports, turn_id: str, *, seq: int, attempt: int, token: str) -> None:
    """Set a turn back to piece `seq` of `attempt`, held by `token`: what a failover does to writes that were not replicated."""
    log = f"aurora:turn:{turn_id}:log"
    kept = [
        (entry, fields) for entry, fields in await at.redis.xrange(log) if tuple(map(int, entry.split(b"-"))) <= (seq, attempt)
    ]
    async with at.redis.pipeline(transaction=True) as pipe:
        pipe.delete(log)
        for entry, fields in kept:
            if entry.endswith(b"-0") or int(entry.rpartition(b"-")[2]) <= attempt:
                pipe.xadd(log, fields, id=entry)
        pipe.hset("aurora:turn:" + turn_id, mapping={"seq": seq, "attempt": attempt, "token": token})
        await pipe.execute()


def dump(server: RedisProcess, *, scores: bool = True) -> dict[str, Any]:
    """Return every key with its type, its value and how long it lives; without `scores`, no times."""
    with server.client() as client:
        return {key: _entry(client, key, scores) for key in sorted(client.scan_iter()) if key not in NO_STATE}


def _entry(client: Any, key: str, scores: bool) -> tuple[str, object, object]:
    kind, ttl = client.type(key), client.ttl(key)
    lives = "for ever" if ttl == -1 else round(ttl, -1)
    match kind:
        case "string":
            value = client.get(key)
            value = json.loads(value) if scores or not value.isdigit() else "a time"
        case "hash":
            value = client.hgetall(key)
            if not scores:
                value = {field: re.sub(r'"at_ms":\d+', '"at_ms":"a time"', text) for field, text in value.items()}
        case "zset":
            value = client.zrange(key, 0, -1, withscores=True) if scores else sorted(client.zrange(key, 0, -1))
        case "stream":
            value = client.xrange(key)
        case _:
            raise AssertionError(f"{key} is a {kind}, which Aurora has none of")
    return kind, value, lives


class Published:
    """Everything that is published on a Redis, on any channel, from now on. Use as `with`."""

    def __init__(self, server: RedisProcess) -> None:
        self._client = server.client()

    def __enter__(self) -> "Published":
        self._pubsub = self._client.pubsub()
        self._pubsub.psubscribe("*")
        self.drain()
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()
        self._client.close()

    def drain(self) -> list[tuple[str, Any]]:
        """Return what was published since the last call: channel and decoded message, in order."""
        out = []
        self._pubsub.ping()  # its answer comes after everything that was published before
        while True:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None, "the subscriber hears nothing"
            if message["type"] == "pong":
                return out
            if message["type"] == "pmessage":
                out.append((message["channel"], json.loads(message["data"])))


def events_in(published: Iterable[tuple[str, Any]], turn_id: str = "") -> list[dict[str, Any]]:
    """Return the events of turns among what was published to clients' channels."""
    batches = [data for channel, data in published if channel.startswith("aurora:client:")]
    return [event for batch in batches for event in batch if turn_id in ("", event["turn_id"])]


def ends_in(published: Iterable[tuple[str, Any]], turn_id: str = "") -> list[dict[str, Any]]:
    """Return the terminal events among them."""
    return [event for event in events_in(published, turn_id) if event["type"] in TERMINAL]


class Assembled:
    """A client's text, put together from events as law 2 says; fails at a gap, a repeat, or a second end."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)
        self.end: End | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Assembled":
        """Assemble all of `events`."""
        assembled = cls()
        for event in events:
            assembled.apply(event)
        return assembled

    @property
    def seq(self) -> int:
        return len(self.texts)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def apply(self, event: Event) -> None:
        assert self.end is None, f"{event.type} came after the end"
        match event:
            case Piece():
                assert event.seq == self.seq + 1, f"piece {event.seq} came after piece {self.seq}"
                self.texts.append(event.text)
            case Rewind():
                assert event.to_seq < self.seq, f"a rewind to {event.to_seq} at {self.seq}"
                del self.texts[event.to_seq :]
            case Takeover():
                assert event.after_seq == self.seq, f"a takeover after {event.after_seq} at {self.seq}"
            case Done() | Failed() | Stopped():
                self.end = event
                if not event.recovered:
                    self.texts = [event.content]

    def proven(self) -> bool:
        """Say whether the receipt is that of the text."""
        return self.end is not None and self.end.receipt == Receipt.of(self.texts)


async def undisturbed(message: str, options: Options, personality: str = "robbie") -> str:
    """Return what the scripted engine says to the first message of a conversation when nothing goes wrong."""
    who = personalities().get(personality)
    at_once = options.over(who.options).model_copy(update={"words_per_second": None})
    prompt = Prompt(who, (PromptMessage(Role.USER, message),))
    engine = ScriptedEngine(ScriptedConfig(drills=True))
    return "".join([piece.text async for piece in engine.generate(prompt, at_once, Prefix(), run="undisturbed")])
