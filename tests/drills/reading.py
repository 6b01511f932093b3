"""What one device heard of one turn, read strictly by the laws. Pure, and apart from the client library, which is under test.

Every event counts: on one connection, pieces come in order, none twice, none missing, beginning right after the position the
device asked for. Over a new connection a device may ask from the start again; then what it knows already must come again alike.
"""

import hashlib
from dataclasses import dataclass, field
from typing import assert_never

from serve_app.chat.events import (
    Accepted,
    Done,
    End,
    Event,
    Failed,
    Piece,
    Queued,
    Receipt,
    Rewind,
    Started,
    Stopped,
    Takeover,
)
from tests.drills.seen import Device


@dataclass
class Reading:
    """What a device has in the end, and what was wrong on the way."""

    pieces: dict[int, Piece] = field(default_factory=dict)
    cuts: dict[int, int] = field(default_factory=dict)
    """For each attempt that took over: the piece after which it went on."""
    runs: list[tuple[float, str]] = field(default_factory=list)
    """When the device heard of an attempt, and the node that runs it."""
    ends: list[End] = field(default_factory=list)
    lost: int = 0
    repeated: int = 0
    taken_back: int = 0
    """Pieces that a `rewind` took back (law 10). They come again, in this or another wording: neither lost nor repeated."""
    problems: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The reply as the device shows it."""
        if self.ends and not self.ends[0].recovered:
            return self.ends[0].content
        return "".join(self.pieces[seq].text for seq in sorted(self.pieces))

    @property
    def whole(self) -> bool:
        """Whether it has the answer: one end, `done`, and nothing wrong."""
        return len(self.ends) == 1 and self.ends[0].type == "done" and not (self.lost or self.repeated or self.problems)


def read(device: Device) -> Reading:
    """Return what `device` has of its turn, with every breach of the laws named."""
    reader = _Reader([link.after for link in device.links])
    for heard in device.heard:
        reader.take(heard.event, heard.link, heard.at)
    return reader.reading


class _Reader:
    def __init__(self, positions: list[int]) -> None:
        self.reading = Reading()
        self._positions = positions
        self._attempts = [0] * len(positions)
        self._turn_id = ""

    def take(self, event: Event, link: int, at: float) -> None:
        if event.turn_id != (self._turn_id or event.turn_id):
            self._problem(f"an event of {event.turn_id} came in between")
            return
        self._turn_id = event.turn_id
        match event:
            case Piece():
                self._piece(event, link)
            case Takeover():
                self._takeover(event, link)
                self.reading.runs.append((at, event.generated_on))
            case Rewind():
                self._rewind(event, link)
            case Done() | Failed() | Stopped():
                self._end(event, link)
            case Started():
                self.reading.runs.append((at, event.node))
            case Accepted() | Queued():
                pass
            case _:
                assert_never(event)

    def _piece(self, piece: Piece, link: int) -> None:
        reading, position = self.reading, self._positions[link]
        if reading.ends:
            self._problem(f"piece {piece.seq} came after the end")
        if piece.seq <= position:
            reading.repeated += 1
            self._problem(f"piece {piece.seq} came again")
        elif piece.seq > position + 1:
            self._lose(piece.seq - position - 1, f"piece {piece.seq} came after piece {position}")
        if self._attempts[link] not in (0, piece.attempt):
            self._problem(f"piece {piece.seq} is of attempt {piece.attempt} during attempt {self._attempts[link]}")
        known = reading.pieces.setdefault(piece.seq, piece)
        if (known.text, known.attempt) != (piece.text, piece.attempt):
            self._problem(f"piece {piece.seq} was {known.text!r} of attempt {known.attempt}, and another one later")
        self._attempts[link] = piece.attempt
        self._positions[link] = max(position, piece.seq)

    def _takeover(self, takeover: Takeover, link: int) -> None:
        position = self._positions[link]
        where = f"attempt {takeover.attempt} goes on after piece {takeover.after_seq}, and piece {position} was the last"
        if takeover.after_seq > position:
            self._lose(takeover.after_seq - position, where)
            self._positions[link] = takeover.after_seq
        elif takeover.after_seq < position:
            self._problem(f"{where}, and nothing was taken back")
        if self.reading.cuts.setdefault(takeover.attempt, takeover.after_seq) != takeover.after_seq:
            self._problem(f"attempt {takeover.attempt} took over twice, at different pieces")
        self._attempts[link] = takeover.attempt

    def _rewind(self, rewind: Rewind, link: int) -> None:
        reading = self.reading
        if rewind.to_seq > self._positions[link]:
            self._problem(f"a rewind to piece {rewind.to_seq} at piece {self._positions[link]}")
        if reading.ends:
            self._problem("a rewind came after the end")
        for seq in [seq for seq in reading.pieces if seq > rewind.to_seq]:
            del reading.pieces[seq]
            reading.taken_back += 1
        reading.cuts = {attempt: after for attempt, after in reading.cuts.items() if after < rewind.to_seq}
        self._positions = [min(position, rewind.to_seq) for position in self._positions]
        self._attempts[link] = 0

    def _end(self, end: End, link: int) -> None:
        reading = self.reading
        reading.ends.append(end)
        if len(reading.ends) > 1:
            self._problem(f"a second ending: {reading.ends[0].type}, then {end.type}")
        if not end.recovered:
            if hashlib.sha256(end.content.encode()).hexdigest() != end.receipt.sha256:
                self._problem("the receipt is not that of the whole message")
            return
        count = max(reading.pieces, default=0)
        if end.receipt.pieces > count:
            self._lose(end.receipt.pieces - count, f"the receipt says {end.receipt.pieces} pieces, and {count} came")
        elif Receipt.of(reading.pieces[seq].text for seq in sorted(reading.pieces)) != end.receipt:
            self._problem("the receipt is not that of the pieces")
        if end.content and end.content != reading.text:
            self._problem("the end carries another text than the pieces")
        self._positions[link] = count

    def _lose(self, count: int, how: str) -> None:
        self.reading.lost += count
        self._problem(how)

    def _problem(self, what: str) -> None:
        self.reading.problems.append(what)
