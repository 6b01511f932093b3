"""The replay law: whatever happens, what any follower assembles is the stored reply (laws 1, 2 and 10).

A turn is led through a random life: pieces, deaths and takeovers, failovers that lose pieces together with their writer,
messages that nobody hears. Devices come, go, come back where they were, and miss things. Every run writes other words, so a
mix of two texts cannot hide.
"""

import asyncio
import contextlib
import functools
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.chat.bus import Subscription
from serve_app.chat.events import Event, Piece, parse_event
from serve_app.chat.follow import follow
from serve_app.chat.turns import BARREN_ATTEMPTS
from tests.support.redis_process import RedisProcess
from tests.support.turn_tools import (
    Assembled,
    Published,
    Store,
    claim,
    ending,
    ends_in,
    fall_due,
    logged,
    lose_after,
    new_turn,
    store,
)
from tests.support.waiting import until

pytestmark = pytest.mark.integration
DEVICES = 3


class Feed(Subscription):
    """A subscription of which the test decides what comes through. None: silence, or something was missed."""

    def __init__(self) -> None:
        self._batches: deque[list[Event] | None] = deque()
        self._come = asyncio.Event()
        self.waiting = False

    def put(self, batch: list[Event] | None) -> None:
        self._batches.append(batch)
        self._come.set()

    async def next(self, timeout: float) -> list[Event] | None:
        while not self._batches:
            self.waiting = True
            self._come.clear()
            await self._come.wait()
        self.waiting = False
        return self._batches.popleft()


@dataclass
class Device:
    """A client's device: what it has, and its connection, if it has one."""

    said: Assembled = field(default_factory=Assembled)
    attempts: list[int] = field(default_factory=list)
    feed: Feed | None = None
    task: asyncio.Task[None] | None = None

    def connect(self, at: Store, turn_id: str) -> None:
        if self.task is None and self.said.end is None:
            self.feed = Feed()
            self.task = asyncio.create_task(self._follow(at, turn_id, self.feed))

    async def disconnect(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        self.task = self.feed = None

    async def settled(self) -> None:
        """Wait until it has taken in everything that came."""
        if self.task is not None and self.feed is not None:
            feed, task = self.feed, self.task
            await until(lambda: task.done() or (feed.waiting and not feed._batches))
            if task.done():
                await task

    async def _follow(self, at: Store, turn_id: str, feed: Feed) -> None:
        attempt = self.attempts[-1] if self.attempts else 0
        async for batch in follow(at.turns, feed, turn_id, after=self.said.seq, attempt=attempt):
            for event in batch:
                self.said.apply(event)
                if isinstance(event, Piece):
                    self.attempts.append(event.attempt)
                del self.attempts[self.said.seq :]


class Life:
    """One turn, its holder, and the devices that follow it."""

    def __init__(self, at: Store, published: Published) -> None:
        self._at = at
        self._published = published
        self.new = new_turn()
        self.devices = [Device() for _ in range(DEVICES)]
        self.log: list[tuple[int, str]] = []
        self.attempt = 0
        self._run = ""
        self._barren = 0
        self._words = 0
        self._ends = 0
        self._whole = ""

    async def begin(self) -> None:
        await self._at.turns.begin(self.new)
        await self._claim(self.new.token)

    async def _claim(self, dispatch: str) -> None:
        claimed = await claim(self._at, self.new.turn_id, dispatch, f"run-{self.attempt + 1}-{self._words}")
        assert [piece.text for piece in claimed.pieces] == [text for _, text in self.log], "it goes on from the log"
        self.attempt, self._run, self._barren = claimed.attempt, f"run-{self.attempt + 1}-{self._words}", self._barren + 1

    def _more(self, count: int) -> list[str]:
        self._words += count
        return [f"{self.attempt}/{self._words - i} " for i in reversed(range(count))]

    async def say(self, count: int) -> None:
        texts = self._more(count)
        pieces = logged(texts, after=len(self.log), attempt=self.attempt)
        await self._at.turns.append(self.new.turn_id, token=self._run, pieces=pieces)
        self.log += [(self.attempt, text) for text in texts]
        self._barren = 0

    async def die(self) -> None:
        if self._barren < BARREN_ATTEMPTS:
            await fall_due(self._at, self.new.turn_id)
            (due,) = (await self._at.turns.sweep(token=f"sweep-{self.attempt}-{self._words}", batch=9)).due
            await self._claim(due.token)

    async def lose(self, count: int) -> None:
        """A failover loses the last pieces, and their writer died with the old primary (law 10)."""
        mine = sum(attempt == self.attempt for attempt, _ in self.log)
        if self._barren < BARREN_ATTEMPTS:
            kept = len(self.log) - min(count, mine)
            await lose_after(self._at, self.new.turn_id, seq=kept, attempt=self.attempt, token=self._run)
            del self.log[kept:]
            await self.die()

    async def end(self, count: int) -> None:
        tail = self._more(count)
        texts = [text for _, text in self.log] + tail
        pieces = logged(tail, after=len(self.log), attempt=self.attempt)
        end = ending(self.new.turn_id, texts, attempt=self.attempt)
        self._whole = "".join(texts)
        await self._at.turns.finish(self.new.turn_id, token=self._run, end=end, tail=pieces, from_seq=len(self.log) + 1)

    async def deliver(self, deaf: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Let the devices hear what was published, except those that are deaf this time."""
        told = self._published.drain()
        self._ends += len(ends_in(told, self.new.turn_id))
        for channel, batch in told:
            if channel == "aurora:client:" + self.new.client_id:
                events = [parse_event(event) for event in batch]
                for number, device in enumerate(self.devices):
                    if device.feed is not None and number not in deaf:
                        device.feed.put(events)
        for device in self.devices:
            await device.settled()

    async def close(self) -> None:
        """Everybody comes back and hears the end; then everybody has the stored reply, and has heard one end."""
        for device in self.devices:
            device.connect(self._at, self.new.turn_id)
        await self.deliver()
        for device in self.devices:
            if device.feed is not None:
                device.feed.put(None)  # the silence in which a follower reads the log
        for device in self.devices:
            await device.settled()
        page = await self._at.conversations.history((await self._at.turns.read(self.new.turn_id)).conversation_id, limit=9)
        stored = page.messages[-1].content
        assert len(page.messages) == 2, "one stored reply"
        assert stored == self._whole
        for device in self.devices:
            assert device.said.end is not None
            assert device.said.text == stored
            assert device.said.proven()
        assert self._ends == 1
        for device in self.devices:
            await device.disconnect()


SAY = st.tuples(st.just("say"), st.integers(1, 3))
DIE = st.tuples(st.just("die"), st.none())
LOSE = st.tuples(st.just("lose"), st.integers(0, 3))
WHO = st.integers(0, DEVICES - 1)
COME = st.tuples(st.just("come"), WHO)
LEAVE = st.tuples(st.just("leave"), WHO)
MISS = st.tuples(st.just("miss"), WHO)
STEPS = st.lists(st.tuples(st.one_of(SAY, SAY, DIE, LOSE, COME, COME, LEAVE, MISS), st.sets(WHO)), max_size=25)


async def lead(server: RedisProcess, steps: list[tuple[tuple[str, int], set[int]]], tail: int) -> None:
    with Published(server) as published:
        async with store(server.url) as at:
            life = Life(at, published)
            await life.begin()
            for (what, number), deaf in steps:
                match what:
                    case "say" | "die" | "lose":
                        await (life.die() if what == "die" else getattr(life, what)(number))
                    case "come":
                        life.devices[number].connect(at, life.new.turn_id)
                    case "leave":
                        await life.devices[number].disconnect()
                    case "miss" if (feed := life.devices[number].feed) is not None:
                        feed.put(None)
                await life.deliver(deaf)
            await life.end(tail if life.log else max(1, tail))
            await life.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, tail=st.integers(0, 2))
def test_what_any_follower_assembles_is_the_stored_reply(
    redis_server: RedisProcess, steps: list[tuple[tuple[str, int], set[int]]], tail: int
) -> None:
    asyncio.run(lead(redis_server, steps, tail))


LOST = [(("come", 0), set()), (("say", 3), set()), (("say", 3), set())]


@pytest.mark.parametrize("meanwhile", ["connected", "deaf", "gone", "gone until the log is longer"])
def test_a_follower_ahead_of_a_log_that_lost_pieces_rewinds_and_ends_with_the_stored_text(
    redis_server: RedisProcess, meanwhile: str
) -> None:
    deaf: set[int] = {0} if meanwhile == "deaf" else set()
    gone = [(("leave", 0), set())] if meanwhile.startswith("gone") else []
    back = [(("say", 3), set()), (("say", 3), set())] if meanwhile.endswith("longer") else []
    steps = [*LOST, *gone, (("lose", 2), deaf), *back, (("come", 0), set()), (("say", 1), deaf)]
    asyncio.run(lead(redis_server, steps, 1))


def test_a_follower_that_was_gone_for_two_takeovers_rewinds_to_where_the_first_went_on(redis_server: RedisProcess) -> None:
    heard_one = [(("say", 1), set()), (("come", 1), set()), (("leave", 1), set())]
    steps = [*heard_one, (("lose", 1), set()), (("say", 1), set()), (("die", 0), set())]
    asyncio.run(lead(redis_server, steps, 0))


async def test_a_follower_that_resumes_from_beyond_the_log_gets_it_from_the_start(redis_server: RedisProcess) -> None:
    with Published(redis_server) as published:
        async with store(redis_server.url) as at:
            life = Life(at, published)
            await life.begin()
            await life.say(3)
            feed = Feed()
            feed.put(None)
            batches = follow(at.turns, feed, life.new.turn_id, after=9)
            events = [event for event in await anext(batches) if event.type != "started"]
            await batches.aclose()
    assert [(event.type, getattr(event, "seq", getattr(event, "to_seq", None))) for event in events] == [
        ("rewind", 0),
        ("piece", 1),
        ("piece", 2),
        ("piece", 3),
    ]


async def test_two_runs_of_one_number_are_no_mix_for_who_heard_it_from_the_start(redis_server: RedisProcess) -> None:
    """A failover that lost a claim gives its number to another run; the receipt shows it, and everything comes again."""
    with Published(redis_server) as published:
        async with store(redis_server.url) as at:
            life = Life(at, published)
            await life.begin()
            await life.say(3)
            first = life._run
            life.devices[0].connect(at, life.new.turn_id)
            life.devices[0].feed.put(None)  # type: ignore[union-attr]
            await life.die()
            await life.say(2)
            await life.deliver()
            assert life.devices[0].attempts == [1, 1, 1, 2, 2]
            await lose_after(at, life.new.turn_id, seq=3, attempt=1, token=first)
            del life.log[3:]
            life.attempt, life._barren = 1, 1
            await life.die()
            assert life.attempt == 2
            await life.say(1)
            await life.say(3)
            await life.deliver()
            await life.end(1)
            await life.close()


async def test_every_position_of_an_ended_turn_resumes_to_the_same_text(redis_server: RedisProcess) -> None:
    with Published(redis_server) as published:
        async with store(redis_server.url) as at:
            life = Life(at, published)
            await life.begin()
            for step in (functools.partial(life.say, 2), life.die, life.die, functools.partial(life.say, 2), life.die):
                await step()
            await life.end(2)
            snapshot = await at.turns.read(life.new.turn_id)
            pieces = [event for event in snapshot.events if isinstance(event, Piece)]
            assert [piece.attempt for piece in pieces] == [1, 1, 3, 3, 4, 4]
            for after in range(len(pieces) + 3):
                for attempt in {0, pieces[min(after, len(pieces)) - 1].attempt}:
                    said = Assembled([piece.text for piece in pieces][:after])
                    said.texts += ["lost"] * (after - len(pieces))
                    async for batch in follow(at.turns, Feed(), life.new.turn_id, after=after, attempt=attempt):
                        for event in batch:
                            said.apply(event)
                    assert said.proven(), (after, attempt)
                    assert said.text == "".join(piece.text for piece in pieces)
