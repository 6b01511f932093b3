"""An engine whose server is away is tried again until it is there; one that fails for another reason fails for all to see."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from serve_app.chat.errors import EngineError, EngineUnavailable
from serve_app.chat.starting import PatientStart
from tests.support.waiting import until

AWAY = EngineUnavailable("Nothing answers there.")


class Engine:
    """Fails to start with what it is told to, again and again where told `for_ever`; takes until `let` where it is to."""

    def __init__(self, *failures: Exception, for_ever: bool = False) -> None:
        self.failures = list(failures)
        self.for_ever = for_ever
        self.tries: list[float] = []
        self.started = 0
        self.let = asyncio.Event()
        self.let.set()

    async def start(self) -> None:
        self.tries.append(asyncio.get_running_loop().time())
        await self.let.wait()
        if self.failures:
            raise self.failures[0] if self.for_ever else self.failures.pop(0)
        self.started += 1


@asynccontextmanager
async def starting(engine: Engine, *, first_s: float = 0.001, longest_s: float = 0.004) -> AsyncIterator[PatientStart]:
    start = PatientStart(engine.start, first_pause_s=first_s, longest_pause_s=longest_s)
    try:
        yield start
    finally:
        await start.stop()


async def test_a_start_that_takes_long_is_waited_for_by_all_who_ask_and_happens_once() -> None:
    engine = Engine()
    engine.let.clear()
    async with starting(engine) as start:
        asking = [asyncio.create_task(start.begin()) for _ in range(3)]
        await until(lambda: engine.tries)
        assert not any(task.done() for task in asking)
        engine.let.set()
        await asyncio.gather(*asking)
        await start.begin()
        assert (engine.started, len(engine.tries), start.why) == (1, 1, "")


async def test_an_engine_whose_server_is_away_is_started_as_soon_as_it_is_there() -> None:
    engine = Engine(AWAY, for_ever=True)
    async with starting(engine) as start:
        await start.begin()
        assert start.why == "Nothing answers there."
        await until(lambda: len(engine.tries) > 5)
        start.check()
        await start.begin()  # the next health check: it does not wait for what may take days
        assert engine.started == 0
        engine.failures.clear()
        await until(lambda: engine.started == 1)
        await until(lambda: start.why == "")
        start.check()
        tries = len(engine.tries)
        await asyncio.sleep(0.02)  # time in which it would be tried again
        assert len(engine.tries) == tries


async def test_it_is_tried_less_and_less_often() -> None:
    engine = Engine(AWAY, for_ever=True)
    async with starting(engine, first_s=0.02, longest_s=0.08) as start:
        await start.begin()
        await until(lambda: len(engine.tries) == 6)
    pauses = [later - earlier for earlier, later in zip(engine.tries, engine.tries[1:], strict=False)]
    assert [pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.08, 0.08), strict=True)] == [True] * 5, pauses


async def test_why_it_is_not_there_is_what_the_last_try_says_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    other = EngineUnavailable("It lacks the model.")
    engine = Engine(AWAY, AWAY, other, other)
    caplog.set_level(logging.WARNING)
    async with starting(engine) as start:
        await start.begin()
        await until(lambda: start.why == "It lacks the model.")
        await until(lambda: engine.started)
    said = [record.getMessage() for record in caplog.records]
    assert [sum(why in line for line in said) for why in ("Nothing answers there.", "It lacks the model.")] == [1, 1], said


async def test_what_waiting_does_not_mend_fails_the_start_and_can_be_tried_anew() -> None:
    engine = Engine(EngineError("It is broken."))
    async with starting(engine) as start:
        with pytest.raises(EngineError, match=r"It is broken\."):
            await start.begin()
        await start.begin()
        assert engine.started == 1


async def test_what_goes_wrong_while_it_waits_is_told_to_the_health_check() -> None:
    bug = ValueError("a bug")
    engine = Engine(AWAY, bug)
    async with starting(engine) as start:
        await start.begin()
        with pytest.raises(RuntimeError) as told:  # noqa: PT012
            while True:
                start.check()
                await asyncio.sleep(0)
        assert told.value.__cause__ is bug


async def test_nothing_is_tried_any_more_once_it_is_stopped() -> None:
    engine = Engine(AWAY, for_ever=True)
    async with starting(engine) as start:
        await start.begin()
    tries = len(engine.tries)
    await asyncio.sleep(0.02)  # time in which it would be tried again
    assert len(engine.tries) == tries
