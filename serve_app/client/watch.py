"""Telling a node that is slow from one that is gone: a frozen or partitioned machine sends no error, only silence."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from serve_app.client.nodes import Health, Nodes
from serve_app.client.retry import Away

SILENCE_S = 2.0
"""After so much silence the node is asked over another connection how it is. With two probes of a second each, a node
that is gone is given up after 4 s."""

T = TypeVar("T")


class Watch:
    """Waits for one node, and gives it up when there is a reason."""

    def __init__(self, nodes: Nodes, url: str) -> None:
        """Watch the node at `url`."""
        self._nodes = nodes
        self._url = url
        self._degraded = 0

    async def wait(self, coming: Coroutine[Any, Any, T]) -> T:
        """Return what `coming` brings, however long it takes, while the node answers probes.

        Raises:
            Away: it does not; or it has lost its Redis, and another node has not. `coming` is cancelled then.
        """
        task = asyncio.create_task(coming)
        try:
            while not (await asyncio.wait({task}, timeout=SILENCE_S))[0]:
                await self._doubt(task)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def each(self, chunks: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """Yield what `chunks` brings, as `wait` does."""
        while True:
            chunk = await self.wait(_next(chunks))
            if chunk is None:
                return
            yield chunk

    async def _doubt(self, task: asyncio.Task[T]) -> None:
        for _ in range(2):
            health = await self._probe_beside(task)
            if health not in (Health.SILENT, Health.REFUSED):
                break
            if health is Health.REFUSED:
                raise Away("it went silent, and refuses connections")
        else:
            raise Away("it went silent, and does not say how it is either")
        self._degraded = self._degraded + 1 if health is Health.DEGRADED else 0
        if self._degraded < 2 or not await self._nodes.is_another_well(self._url):
            return
        if await self._probe_beside(task) is Health.DEGRADED:  # still: it is not Redis that comes back just now
            raise Away("it has lost its Redis, and another node has not")

    async def _probe_beside(self, task: asyncio.Task[T]) -> Health:
        """Return how the node is; if `task` ends first, that is an answer too."""
        probe = asyncio.create_task(self._nodes.probe(self._url))
        try:
            await asyncio.wait({task, probe}, return_when=asyncio.FIRST_COMPLETED)
            return Health.WELL if task.done() else probe.result()
        finally:
            if not probe.done():
                probe.cancel()
                await asyncio.gather(probe, return_exceptions=True)


async def _next(chunks: AsyncIterator[T]) -> T | None:
    return await anext(chunks, None)
