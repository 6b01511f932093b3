"""The turns that one WebSocket connection follows, each with a bounded queue of live events."""

import asyncio
from collections import OrderedDict

from serve_app.chat.bus import Subscription
from serve_app.chat.events import Event
from serve_app.chat.inbox import Inbox

REMEMBERED = 1_000


class _Known:
    """The turn ids this connection has dealt with lately; bounded."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, turn_id: str) -> None:
        self._ids[turn_id] = None
        self._ids.move_to_end(turn_id)
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)

    def discard(self, turn_id: str) -> None:
        self._ids.pop(turn_id, None)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._ids


class Feeds:
    """Which turns are followed, by whom, and which were already dealt with."""

    def __init__(self) -> None:
        """Start with none."""
        self.known = _Known()
        self._feeds: dict[str, Inbox] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}

    def open(self, turn_id: str) -> Inbox:
        """Return a fresh feed for a turn; it replaces an older one."""
        self.known.add(turn_id)
        feed = self._feeds[turn_id] = Inbox()
        return feed

    def follow(self, turn_id: str, follower: asyncio.Task[None]) -> None:
        """Note who follows a turn; whoever did before is cancelled."""
        before = self._followers.get(turn_id)
        self._followers[turn_id] = follower
        if before is not None and not before.done():
            before.cancel()

    def close(self, turn_id: str, feed: Subscription) -> None:
        """Forget a feed, unless another has replaced it."""
        if self._feeds.get(turn_id) is feed:
            del self._feeds[turn_id]
            self._followers.pop(turn_id, None)

    def forget(self, turn_id: str) -> None:
        """Know nothing of a turn any more."""
        self._feeds.pop(turn_id, None)
        self.known.discard(turn_id)

    def put(self, turn_id: str, batch: list[Event]) -> None:
        """Hand live events to a turn's follower, if it has one."""
        feed = self._feeds.get(turn_id)
        if feed is not None:
            feed.put(batch)

    def miss(self) -> None:
        """Tell every follower that something may have been missed."""
        for feed in self._feeds.values():
            feed.miss()
