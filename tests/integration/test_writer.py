"""How a run writes down what its engine says: coalesced, bounded, with boundaries that never change (law 9)."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, Prefix, Prompt
from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.events import Piece
from serve_app.chat.generate import Generator, GeneratorConfig
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.chat.turns import LoggedPiece, Verdict
from serve_app.chat.writer import BUFFER_LIMIT, COALESCE_MOST_S, COALESCE_S, PIECE_LIMIT, Superseded, Writer, window_s
from serve_app.state.turns import RedisTurns
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled, lose_after, open_turn, store
from tests.support.waiting import Listening, until, whole

pytestmark = pytest.mark.integration


class TalkingEngine(Engine):
    """Says `words` words of `size` characters, `per_second` of them; counts what was taken from it."""

    def __init__(self, words: int, size: int, *, per_second: float = 0.0) -> None:
        self.words = [f"{number:>{size - 1}} " for number in range(words)]
        self._pause = 1 / per_second if per_second else 0.0
        self.taken = 0
        self.closed = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(kind="talking", model="talking-1", language_model=False)

    async def start(self) -> None: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        try:
            for word in self.words:
                await asyncio.sleep(self._pause)
                self.taken += len(word)
                yield EnginePiece(word)
        finally:
            self.closed = True


class CountedTurns(RedisTurns):
    """Keeps the appends in mind; refuses them as if Redis were away while `away` is set."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.appends: list[tuple[float, list[LoggedPiece]]] = []
        self.times: dict[str, list[float]] = {}
        self.away = False

    async def append(self, turn_id: str, *, token: str, pieces: Sequence[LoggedPiece]) -> tuple[Verdict, int]:
        if self.away:
            raise StoreUnavailable()
        self.appends.append((asyncio.get_running_loop().time(), list(pieces)))
        self.times.setdefault(turn_id, []).append(asyncio.get_running_loop().time())
        return await super().append(turn_id, token=token, pieces=pieces)


def counting(stack: Stack, engine: Engine, config: GeneratorConfig | None = None) -> CountedTurns:
    """Let the stack, which has not started yet, write through `CountedTurns`."""
    turns = CountedTurns(stack.scripts)
    stack.pool.generator = stack.generator = Generator(turns, engine, node="aurora", config=config)
    return turns


async def test_the_first_piece_leaves_at_once_and_then_at_most_one_append_in_each_window(redis_server: RedisProcess) -> None:
    stack = Stack(redis_server.url)
    turns = counting(stack, TalkingEngine(500, 6, per_second=1_000))
    async with stack:
        events = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")))
    assert Assembled.of(events).proven()
    times = [at for at, _ in turns.appends]
    assert [len(piece.text) for piece in turns.appends[0][1]] == [6], "the first word waited for nobody"
    assert all(later - sooner >= COALESCE_S * 0.95 for sooner, later in itertools.pairwise(times))
    assert len(turns.appends) < 500 * 0.001 * 3 / COALESCE_S


def test_the_window_grows_with_the_runs_and_ends_somewhere() -> None:
    assert [window_s(runs) for runs in (0, 1, 8, 16, 32, 1_000)] == [COALESCE_S] * 3 + [2 * COALESCE_S] + [COALESCE_MOST_S] * 2


async def test_many_runs_at_once_each_write_less_often(redis_server: RedisProcess) -> None:
    stack, runs = Stack(redis_server.url), 24
    turns = counting(stack, TalkingEngine(100_000, 6, per_second=200))
    async with stack, AsyncExitStack() as listening:
        for number in range(runs):
            asked = stack.service.ask(Ask(client_id=f"ann{number}", message="Hello"))
            await listening.enter_async_context(Listening(asked))
        await until(lambda: len(turns.times) == runs, 20)
        since = asyncio.get_running_loop().time() + window_s(runs)  # then a window that was begun by fewer is over
        await until(lambda: all(sum(at > since for at in times) > 3 for times in turns.times.values()), 20)
        gaps = [
            later - sooner
            for times in turns.times.values()
            for sooner, later in itertools.pairwise(at for at in times if at > since)
        ]
    assert min(gaps) >= window_s(runs) * 0.95


async def test_a_short_reply_travels_with_its_end(redis_server: RedisProcess) -> None:
    stack = Stack(redis_server.url)
    turns = counting(stack, TalkingEngine(1, 10))
    async with stack:
        events = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")))
    assert [event.type for event in events] == ["accepted", "started", "piece", "done"]
    assert len(turns.appends) <= 1


async def test_an_engine_that_says_everything_at_once_makes_no_huge_events(redis_server: RedisProcess) -> None:
    async with Stack(redis_server.url, engine=TalkingEngine(20_000, 50)) as stack:
        events = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")))
    pieces = [event.text for event in events if isinstance(event, Piece)]
    assert max(map(len, pieces)) <= PIECE_LIMIT + 50
    said = Assembled.of(events)
    assert said.proven()
    assert len(said.text) == 1_000_000


async def test_an_engine_is_not_read_any_further_while_redis_is_away_and_the_turn_is_whole_afterwards(
    own_redis: RedisProcess,
) -> None:
    engine = TalkingEngine(2_000, 1_000, per_second=100_000)
    async with Stack(own_redis.url, engine=engine) as stack:
        async with Listening(stack.service.ask(Ask(client_id="ann", message="Hello"))) as heard:
            await heard.pieces(1)
            own_redis.freeze()
            at_first = engine.taken
            await until(lambda: engine.taken > at_first + BUFFER_LIMIT * 0.9)
            await asyncio.sleep(1)  # a second in which it could say the rest
            assert engine.taken < at_first + BUFFER_LIMIT + PIECE_LIMIT
            own_redis.thaw()
            events = await heard.end()
        said = Assembled.of(events)
        assert said.proven()
        assert said.text == "".join(engine.words)


async def test_at_the_cap_a_run_still_renews_and_its_engine_is_not_called_silent(redis_server: RedisProcess) -> None:
    stack, engine = Stack(redis_server.url), TalkingEngine(400, 1_000, per_second=100_000)
    turns = counting(stack, engine, GeneratorConfig(piece_timeout_s=1.0))
    async with stack, Listening(stack.service.ask(Ask(client_id="ann", message="Hello"))) as heard:
        await heard.pieces(1)
        turns.away = True
        await until(lambda: engine.taken > BUFFER_LIMIT)
        await asyncio.sleep(4)  # longer than a lease, and than the engine may be silent
        turns.away = False
        events = await heard.end()
    assert events[-1].type == "done"
    assert "takeover" not in {event.type for event in events}
    assert Assembled.of(events).text == "".join(engine.words)


async def test_a_log_that_lost_pieces_gets_the_same_ones_again_from_the_writer_that_lives(redis_server: RedisProcess) -> None:
    stack, engine = Stack(redis_server.url), TalkingEngine(400, 6, per_second=400)
    turns = counting(stack, engine)
    async with stack:
        async with Listening(stack.service.ask(Ask(client_id="ann", message="Hello"))) as heard:
            for count in (6, 12, 18):
                await heard.pieces(count)
                turn_id = heard.events[0].turn_id
                token = await stack.redis.hget("aurora:turn:" + turn_id, "token")
                await lose_after(stack, turn_id, seq=count - 4, attempt=1, token=token.decode())
            events = await heard.end()
        stored = (await stack.turns.read(turn_id)).reply
    said = Assembled.of(events)
    assert said.proven()
    assert stored is not None
    assert said.text == stored.content == "".join(engine.words)
    sent: dict[int, str] = {}
    again = 0
    for piece in (piece for _, pieces in turns.appends for piece in pieces):
        again += piece.seq in sent
        assert sent.setdefault(piece.seq, piece.text) == piece.text, "a piece has other boundaries the second time"
    assert again, "something was sent again"


async def test_pieces_lost_right_before_the_end_are_sent_with_it(redis_server: RedisProcess) -> None:
    class LosingTurns(CountedTurns):
        """The first time that a run finishes, Redis has just lost all but one piece."""

        async def finish(self, turn_id: str, **facts: Any) -> tuple[Verdict, int]:
            if not self.away:
                self.away = True
                await lose_after(stack, turn_id, seq=1, attempt=1, token=facts["token"])
            return await super().finish(turn_id, **facts)

    stack, engine = Stack(redis_server.url), TalkingEngine(100, 6, per_second=400)
    stack.pool.generator = stack.generator = Generator(LosingTurns(stack.scripts), engine, node="aurora")
    async with stack:
        events = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")))
    assert Assembled.of(events).proven()
    assert Assembled.of(events).text == "".join(engine.words)


async def test_a_writer_that_lost_its_turn_takes_nothing_more(redis_server: RedisProcess) -> None:
    async with store(redis_server.url) as at:
        turn = await open_turn(at)
        writer = Writer(at.turns, turn.turn_id, token=turn.run, attempt=1, pieces=())
        await writer.__aenter__()
        await at.turns.hold(turn.turn_id, token="stop", stopping=True)
        writer.add("late")
        await until(lambda: writer.refused)
        with pytest.raises(Superseded):
            writer.add("later")
        with pytest.raises(Superseded):
            await writer.__aexit__(None)


async def test_stopping_a_turn_stops_its_engine(redis_server: RedisProcess) -> None:
    engine = TalkingEngine(100_000, 6, per_second=200)
    async with (
        Stack(redis_server.url, engine=engine) as stack,
        Listening(stack.service.ask(Ask(client_id="ann", message="Hello"))) as heard,
    ):
        await heard.pieces(2)
        await stack.service.stop(heard.events[0].turn_id)
        await heard.end()
        await until(lambda: engine.closed, 3)
        await until(lambda: stack.generator.running == 0, 3)
