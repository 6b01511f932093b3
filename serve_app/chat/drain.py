"""A node that leaves: it finishes what it has in hand, moves the rest, says good-bye, and takes on nothing by itself.

An operator asks for it (`aurora-cli node drain`). Every replica on that node looks for it once a second, and says each time
how much it still has in hand; what arrives at the node all the same is served as ever.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from serve_app.chat.background import Background, again_and_again

LOOK_EVERY_S = 1.0
GOODBYE_SPREAD_S = 4.0
"""Not everybody is sent away in the same instant: they all come back at once, to the nodes that stay."""


class DrainStore(Protocol):
    """What operators have asked nodes to do."""

    async def look(self, node: str, *, replica: str, in_hand: int) -> float | None:
        """Return how many seconds `node` has left to finish what is live on it (below 0: none); None if it is not to leave.

        While it is leaving, `in_hand` is kept for whoever waits for the node to have nothing left.

        Raises:
            StoreUnavailable: the store did not answer; it is asked again a second later.
        """
        ...


class Departure:
    """Whether this node is leaving, as one replica knows it."""

    def __init__(self) -> None:
        """Stay."""
        self._called = asyncio.Event()
        self._moves_at = math.inf

    @property
    def leaving(self) -> bool:
        """Whether it is."""
        return self._called.is_set()

    @property
    def time_left(self) -> float:
        """Seconds until what is live here must go on elsewhere; endless while the node stays, below 0 when it is time."""
        return self._moves_at - asyncio.get_running_loop().time()

    async def called(self) -> None:
        """Wait until the node is leaving."""
        await self._called.wait()

    def call(self, within_s: float) -> None:
        """Leave; what is live may take `within_s` seconds more."""
        self._moves_at = asyncio.get_running_loop().time() + within_s
        self._called.set()

    def cancel(self) -> None:
        """Stay after all."""
        self._moves_at = math.inf
        self._called.clear()


class DrainWatch:
    """Looks whether the node is to leave, and tells a `Departure`. Use as `async with`.

    While the store is away things stay as they were last known to be.
    """

    def __init__(
        self,
        drains: DrainStore,
        departure: Departure,
        *,
        node: str,
        replica: str,
        in_hand: Callable[[], int],
        changed: Callable[[bool], Awaitable[None]] | None = None,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        """Watch `node` for `replica`, which has `in_hand()` turns or connections; `changed` is told whether it leaves now."""
        self._drains = drains
        self._departure = departure
        self._node = node
        self._replica = replica
        self._in_hand = in_hand
        self._changed = changed
        looking = partial(again_and_again, self._look, every_s=every_s)
        self._looking = Background(looking, name="drain-watch", died="Nobody looks any more whether this node is to leave.")

    async def __aenter__(self) -> "DrainWatch":
        """Begin to look."""
        self._looking.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop looking."""
        await self._looking.stop()

    def check(self) -> None:
        """Return if the looking goes on.

        Raises:
            RuntimeError: it has died, of a bug.
        """
        self._looking.check()

    async def _look(self) -> None:
        left = await self._drains.look(self._node, replica=self._replica, in_hand=self._in_hand())
        before = self._departure.leaving
        if left is not None:
            self._departure.call(left)
        elif before:
            self._departure.cancel()
        if self._changed is not None and self._departure.leaving != before:
            await self._changed(self._departure.leaving)
