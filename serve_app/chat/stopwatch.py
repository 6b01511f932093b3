"""How a turn felt to one follower: the wait for its first piece, and the pause around each takeover."""

import time
from collections.abc import Callable, Iterable

from serve_app.chat.events import Event, Piece, Takeover, is_end
from serve_app.chat.meter import FIRST_PIECE, TAKEOVER_PAUSE, Meter


class Stopwatch:
    """Times what one follower is given. Starts with its making."""

    def __init__(self, meter: Meter, *, fresh: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Report to `meter`. `fresh`: the turn begins now, else the follower is first given what happened before."""
        self._meter = meter
        self._clock = clock
        self._moved = clock()
        self._first = fresh
        self._live = fresh
        self._taken_over = False

    def saw(self, events: Iterable[Event], *, caught_up: bool = True) -> None:
        """Take note of events that are passed on together, now; `caught_up` once the log has been read.

        The takeovers among what happened before the following began are of the past: they are nobody's pause here.
        """
        moved = self._moved
        for event in events:
            if isinstance(event, Takeover):
                self._taken_over = self._live
            elif isinstance(event, Piece) or is_end(event):
                moved = self._clock()
                if self._first and isinstance(event, Piece):
                    self._meter.observe(FIRST_PIECE, moved - self._moved)
                if self._taken_over:
                    self._meter.observe(TAKEOVER_PAUSE, moved - self._moved)
                self._first = self._taken_over = False
        self._moved = moved
        self._live = self._live or caught_up
