"""Work in the background goes on until it is stopped, and its death is told to who asks."""

import asyncio
import contextvars
from functools import partial

import pytest

from serve_app.chat.background import Background, again_and_again
from serve_app.chat.errors import StoreUnavailable
from tests.support.waiting import until

REQUEST = contextvars.ContextVar("request", default="none")


class Work:
    """Fails the first times, with what it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.done = 0
        self.request = ""

    async def __call__(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.done += 1
        self.request = REQUEST.get()


def background(work: Work) -> Background:
    return Background(partial(again_and_again, work, every_s=0.001), name="work", died="Nobody works.")


async def test_the_store_being_away_is_no_death() -> None:
    work = Work(StoreUnavailable(), StoreUnavailable())
    working = background(work)
    working.start()
    await until(lambda: work.done > 2)
    working.check()
    await working.stop()
    done = work.done
    await asyncio.sleep(0.01)  # time in which it would go on
    assert work.done == done


async def test_a_bug_is_told_with_its_reason() -> None:
    bug = ValueError("a bug")
    working = background(Work(bug))
    working.start()
    with pytest.raises(RuntimeError, match="Nobody works") as told:  # noqa: PT012
        while True:
            working.check()
            await asyncio.sleep(0)
    assert told.value.__cause__ is bug
    await working.stop()


async def test_what_was_not_started_is_well_and_can_be_stopped() -> None:
    working = background(Work())
    working.check()
    await working.stop()


async def test_the_request_that_happened_to_start_it_is_none_of_its_business() -> None:
    work = Work()
    working = background(work)
    REQUEST.set("somebody's")
    working.start()
    await until(lambda: work.done)
    assert work.request == "none"
    await working.stop()
