"""Work that goes on beside everything else, and whose death does not go unnoticed."""

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from serve_app.chat.errors import StoreUnavailable


class Background:
    """A task that works from `start` to `stop`. It ends before only of a bug, and then `check` says so."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], *, name: str, died: str) -> None:
        """Do `work`, which never returns; `died` is what `check` says where it has."""
        self._work = work
        self._name = name
        self._died = died
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in a context of its own: whoever starts it may be serving a request, whose facts are not the work's."""
        self._task = asyncio.create_task(self._work(), name=self._name, context=contextvars.Context())

    async def stop(self) -> None:
        """End it; does nothing where it was not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Return if it goes on, or was not started.

        Raises:
            RuntimeError: it has died.
        """
        if self._task is not None and self._task.done():
            raise RuntimeError(self._died) from (None if self._task.cancelled() else self._task.exception())


async def again_and_again(work: Callable[[], Awaitable[None]], *, every_s: float) -> None:
    """Do `work` every `every_s` seconds, for ever; the store being away costs a turn of it, not the work."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            await work()
        await asyncio.sleep(every_s)
