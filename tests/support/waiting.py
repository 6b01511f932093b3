"""Waiting for what a test is about: a condition with a deadline, or a turn's events up to its end. Never a bare sleep."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, overload

from serve_app.chat.events import Event, is_end

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T]], timeout: float = 5.0) -> T: ...
@overload
async def until(condition: Callable[[], T], timeout: float = 5.0) -> T: ...
async def until(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    """Return what `condition` says, sync or async, as soon as it is true; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{inspect.getsource(condition).strip()!r} did not come true within {timeout:g} s")
        await asyncio.sleep(0.005)


async def whole(events: AsyncIterator[Event], timeout: float = 30.0) -> list[Event]:
    """Return all events of a turn: up to its end, and make sure that nothing follows it."""
    async with asyncio.timeout(timeout):
        heard = [event async for event in events]
    assert heard, "there were no events"
    assert [is_end(event) for event in heard] == [False] * (len(heard) - 1) + [True], [event.type for event in heard]
    return heard


class Listening:
    """Follows a turn in the background. Use as `async with`; `events` grows, `end()` waits for the end."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self.events: list[Event] = []
        self._source = events

    async def __aenter__(self) -> "Listening":
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        async for event in self._source:
            self.events.append(event)

    def said(self) -> int:
        """How many pieces have come so far."""
        return sum(event.type == "piece" for event in self.events)

    async def first(self, kind: str, timeout: float = 10.0) -> Event:
        """Wait for the first event of a type."""

        def found() -> list[Event]:
            return [event for event in self.events if event.type == kind]

        return (await until(found, timeout))[0]

    async def pieces(self, count: int, timeout: float = 10.0) -> None:
        """Wait until `count` pieces have come."""
        await until(lambda: self.said() >= count or self._task.done(), timeout)
        assert self.said() >= count, [event.type for event in self.events]

    async def end(self, timeout: float = 30.0) -> list[Event]:
        """Wait for the end and return all events."""
        async with asyncio.timeout(timeout):
            await asyncio.shield(self._task)
        assert [is_end(event) for event in self.events].count(True) == 1, [event.type for event in self.events]
        assert is_end(self.events[-1]), "something came after the end"
        return self.events
