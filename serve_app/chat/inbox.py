"""A bounded queue of live events for one follower: whoever falls behind is told to read the log instead."""

import asyncio
from collections import deque

from serve_app.chat.bus import Subscription
from serve_app.chat.events import Event

LIMIT = 256
"""Batches a slow follower may be behind; beyond, it reads the log: a position, not memory."""


class Inbox(Subscription):
    """What has come for one follower and was not taken yet. One reader at a time."""

    def __init__(self) -> None:
        """Start empty."""
        self._batches: deque[list[Event]] = deque()
        self._missed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def heard(self) -> bool:
        """Whether anything has come that was not taken yet."""
        return bool(self._batches) or self._missed

    def put(self, batch: list[Event]) -> None:
        """Add what has come; beyond the limit, everything is dropped and the follower told."""
        if len(self._batches) >= LIMIT:
            self.miss()
        else:
            self._batches.append(batch)
            self._wake()

    def miss(self) -> None:
        """Tell the follower that something may be missing."""
        self._missed = True
        self._batches.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, timeout: float) -> list[Event] | None:
        """See `Subscription.next`."""
        if not self.heard:
            loop = asyncio.get_running_loop()
            self._waiter = waiter = loop.create_future()
            timer = loop.call_later(timeout, self._wake)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        if self._missed or not self._batches:
            self._missed = False
            return None
        return self._batches.popleft()
