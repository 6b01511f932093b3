"""The turns that one device hears of, put together from the frames of one connection after the other. No I/O."""

import asyncio
from collections import OrderedDict
from typing import Any

from serve_app.chat.events import End, Event, Failed, Receipt, is_end
from serve_app.client.assembly import Assembly
from serve_app.client.promises import Broken, BrokenPromise
from serve_app.client.retry import RequestRefused
from serve_app.client.seen import REMEMBERED, Seen
from serve_app.client.sse import event_of


class Turns:
    """What is known of each turn of a client."""

    def __init__(self, seen: Seen) -> None:
        """Know nothing; `seen` learns of pauses."""
        self.assemblies: OrderedDict[str, Assembly] = OrderedDict()
        self.torn = ""
        """Why the connection is of no use any more, if so: connect again, to have what is missing or does not fit."""
        self._seen = seen
        self._connections = 0
        self._ended_here: set[str] = set()
        self._healed: set[str] = set()
        self._waits_since: dict[str, float] = {}
        """The open turns, each with the time of its last text."""

    @property
    def any_open(self) -> bool:
        """Whether the end of any turn is still to come."""
        return bool(self._waits_since)

    def reconnected(self) -> list[dict[str, Any]]:
        """Begin with a new connection; return the frames that say where to go on."""
        self._connections += 1
        self.torn = ""
        self._ended_here.clear()
        found = ((turn_id, self.assemblies[turn_id]) for turn_id in self._waits_since)
        return [{"type": "resume", "turn_id": turn_id, "after": a.seq, "attempt": a.attempt} for turn_id, a in found]

    def take(self, frame: dict[str, Any]) -> list[Event]:
        """Return what is news in a frame; one that is no event of a turn, or that leaves the connection `torn`, has none.

        Raises:
            BadStream: it is an event without its fields.
            BrokenPromise: connecting again has not helped.
        """
        event = event_of(frame)
        if event is None:
            return []
        if isinstance(event, End) and not event.recovered and event.receipt.pieces and not event.content:
            # Neither its pieces nor its text are kept. It concerns this turn alone.
            return self._failed(event.turn_id, "no_turn", "The text is no longer kept: its conversation was deleted.")
        now = asyncio.get_running_loop().time()
        assembly = self.assemblies.get(event.turn_id)
        if assembly is None:
            assembly = self.assemblies[event.turn_id] = Assembly()
            self._waits_since[event.turn_id] = now
        # A node may follow a turn twice over one connection: because it is open, and because it was asked to resume it.
        over = (self._connections, event.turn_id in self._ended_here)
        if is_end(event):
            self._ended_here.add(event.turn_id)
        try:
            news = assembly.take(event, over=over)
        except BrokenPromise as broken:
            # Who resumes after a double failure can be ahead of the log (law 10): only from the start is certain.
            if event.turn_id in self._healed or broken.what is Broken.SECOND_END:
                raise
            self._healed.add(event.turn_id)
            self.torn = "the text is another one now"
            return [assembly.start_over()]
        if news is None:
            self.torn = "something is missing"
            return []
        self._note(event.turn_id, news, now)
        return news

    def refused(self, refused: RequestRefused) -> list[Event]:
        """Return what is news because of a refusal that is not about a message: the end of its turn, if that was open."""
        return self._failed(refused.turn_id, refused.code, refused.message)

    def _failed(self, turn_id: str, code: str, message: str) -> list[Event]:
        """End an open turn of which there is nothing more to be had."""
        if turn_id not in self._waits_since:
            return []
        del self._waits_since[turn_id], self.assemblies[turn_id]
        self._healed.discard(turn_id)
        return [Failed(turn_id=turn_id, receipt=Receipt.of([]), recovered=False, code=code, message=message, retryable=False)]

    def _note(self, turn_id: str, news: list[Event], now: float) -> None:
        """Keep the time of the last text, and no more turns than are worth remembering."""
        ended = any(is_end(event) for event in news)
        if ended or any(event.type == "piece" for event in news):
            self._seen.paused(turn_id, now - self._waits_since.get(turn_id, now))
            self._waits_since[turn_id] = now
        if ended:
            del self._waits_since[turn_id]
            self._healed.discard(turn_id)
            self.assemblies.move_to_end(turn_id)
            while len(self.assemblies) > REMEMBERED and next(iter(self.assemblies.values())).end is not None:
                self.assemblies.popitem(last=False)
