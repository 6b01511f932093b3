"""What all clients have in common: writing down what is heard, and knowing where the answer stands."""

import asyncio
import time

from serve_app.chat.events import Accepted, Event, Piece, Rewind, Started, Takeover, is_end
from tests.drills.seen import Asked, Device, Failure, Heard, Link

GIVE_UP_S = 90.0
"""A client that tries again does so for that long beyond the undisturbed duration of its answer."""


def now() -> float:
    """The machine's monotonic time, in seconds."""
    return time.monotonic()


def body_of(asked: Asked) -> dict[str, object]:
    """What to send for `asked`, over REST."""
    return {
        "message": asked.message,
        "client_id": asked.client_id,
        "personality": asked.personality,
        "options": asked.options,
    }


def fail(asked: Asked, door: str, why: object) -> None:
    """Write down that a request failed."""
    text = (str(why) or type(why).__name__) if isinstance(why, BaseException) else str(why)
    asked.failures.append(Failure(now(), door, text[:120]))


class Ear:
    """One device, listening to one turn."""

    def __init__(self, asked: Asked, *, first: bool = True) -> None:
        """Listen for what comes of `asked`; `first`: this is the device that asked."""
        self.asked = asked
        self.device = Device()
        self.turn_id = ""
        self.seq = self.attempt = 0
        self.done = asyncio.Event()
        """There is no more to hear: the turn has ended, or the device has given up."""
        self._first = first
        asked.devices.append(self.device)

    @property
    def open(self) -> bool:
        """Whether there is more to hear."""
        return not self.done.is_set()

    def give_up(self) -> None:
        """Listen no longer."""
        self.done.set()

    def connect(self, door: str, *, after: int = 0) -> int:
        """Note a new connection that begins after piece `after`; return its number."""
        self.device.links.append(Link(door, now(), after))
        return len(self.device.links) - 1

    def lose(self, link: int, why: object) -> None:
        """Note that a connection broke off."""
        text = str(why) or type(why).__name__
        self.device.links[link].lost = text[:120]

    def hear(self, event: Event, link: int) -> None:
        """Write `event` down."""
        at = now()
        self.device.heard.append(Heard(at, link, event))
        self.turn_id = self.turn_id or event.turn_id
        match event:
            case Piece():
                self.seq, self.attempt = max(self.seq, event.seq), event.attempt
            case Started() | Takeover():
                self.attempt = max(self.attempt, event.attempt)
            case Rewind():
                self.seq = min(self.seq, event.to_seq)
            case Accepted() if self._first:
                self.asked.turn_id = event.turn_id
                self.asked.acknowledged_at = self.asked.acknowledged_at or at
        if is_end(event):
            if self._first and self.open:
                self.asked.ended_at = at
            self.done.set()

    def deadline(self) -> float:
        """Until when to go on trying."""
        return self.asked.asked_at + self.asked.words / self.asked.words_per_second + GIVE_UP_S
