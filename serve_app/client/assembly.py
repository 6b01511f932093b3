"""What a client has of one turn, put together from events, and whether the promises about it were kept.

Pure: no I/O, no clock. A client feeds it whatever arrives, over any number of connections; a drill feeds it what it saw
and asks whether it was right. Laws 1, 2 and 10 of the design are checked here, by the side that they are promised to.
"""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import groupby

from serve_app.chat.events import Accepted, Done, End, Event, Failed, Piece, Queued, Receipt, Rewind, Started, Stopped, Takeover
from serve_app.client.promises import Broken, BrokenPromise


@dataclass(frozen=True)
class Stretch:
    """Pieces `first` to `last`, written by one attempt."""

    attempt: int
    first: int
    last: int
    text: str


class Assembly:
    """The events of one turn, put together.

    Repeats change nothing. Events of one connection come in the order in which they were sent; a connection may begin
    anywhere up to `seq`, and connections may come one after another or interleaved.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.turn_id = ""
        self.conversation_id = ""
        self.personality = ""
        self.attempt = 0
        self.pieces: list[Piece] = []
        self.cuts: dict[int, int] = {}
        """For each attempt that took over: the piece after which it goes on."""
        self.end: End | None = None
        self._recovered: str | None = None
        self._ended_over: set[Hashable] = set()

    @property
    def seq(self) -> int:
        """The last piece there is: whoever resumes asks for what comes after it."""
        return len(self.pieces)

    @property
    def text(self) -> str:
        """What was said so far; the whole reply once there is an `end`."""
        return "".join(piece.text for piece in self.pieces) if self._recovered is None else self._recovered

    @property
    def stretches(self) -> list[Stretch]:
        """Which attempt wrote which pieces."""
        found = []
        for attempt, group in groupby(self.pieces, key=lambda piece: piece.attempt):
            pieces = list(group)
            found.append(Stretch(attempt, pieces[0].seq, pieces[-1].seq, "".join(piece.text for piece in pieces)))
        return found

    def take(self, event: Event, *, over: Hashable = None) -> list[Event] | None:
        """Return what is news about `event`, or None if something before it is missing: resume after `seq`.

        `over` names the connection: over another one an end may come again, over the same one not.

        Raises:
            BrokenPromise: the event contradicts what came before, or the receipt.
        """
        if event.turn_id != (self.turn_id or event.turn_id):
            raise self._broken(Broken.MIX, f"an event of {event.turn_id} came in between")
        news = self._take(event, over)
        if news is not None:
            self.turn_id = event.turn_id
        return news

    def whole(self) -> str:
        """Return the reply, proven by its receipt.

        Raises:
            BrokenPromise: it has not come to its end; something is missing.
        """
        if self.end is None:
            raise self._broken(Broken.LOST_PIECE, f"there is nothing after piece {self.seq}, not even an end")
        return self.text

    def start_over(self) -> Rewind:
        """Forget every piece, to take them all again from the start; return the event that tells a reader so."""
        self._drop_after(0)
        return Rewind(turn_id=self.turn_id, to_seq=0)

    def _take(self, event: Event, over: Hashable) -> list[Event] | None:
        match event:
            case Piece():
                return self._piece(event)
            case Takeover():
                return self._takeover(event)
            case Rewind():
                return self._rewind(event)
            case Done() | Failed() | Stopped():
                return self._ending(event, over)
            case Accepted():
                first, self.conversation_id = not self.conversation_id, event.conversation_id
                self.personality = self.personality or event.personality
                return [event] if first else []
            case Started():
                if self.attempt or self.pieces or self.end:
                    return []
                self.attempt, self.personality = event.attempt, event.personality
                return [event]
            case Queued():
                return [] if self.end else [event]

    def _piece(self, piece: Piece) -> list[Event] | None:
        if piece.seq <= self.seq:
            known = self.pieces[piece.seq - 1]
            if known.text != piece.text:
                raise self._broken(Broken.REPEATED_PIECE, f"piece {piece.seq} came again with another text")
            if known.attempt != piece.attempt:
                raise self._broken(Broken.MIX, f"piece {piece.seq} is of attempt {known.attempt} and of {piece.attempt}")
            return []
        if self.end:
            if self._recovered is not None and piece.seq <= self.end.receipt.pieces:
                return []
            raise self._broken(Broken.SECOND_END, f"piece {piece.seq} came after the end")
        if piece.seq > self.seq + 1:
            return None
        if self.attempt not in (0, piece.attempt):
            raise self._broken(Broken.MIX, f"piece {piece.seq} is of attempt {piece.attempt} during attempt {self.attempt}")
        self.attempt = piece.attempt
        self.pieces.append(piece)
        return [piece]

    def _takeover(self, takeover: Takeover) -> list[Event] | None:
        if self._recovered is not None or self.cuts.get(takeover.attempt) == takeover.after_seq:
            return []
        if self.end:
            raise self._broken(Broken.SECOND_END, f"attempt {takeover.attempt} took over after the end")
        if takeover.after_seq > self.seq:
            return None
        if takeover.after_seq < self.seq or takeover.attempt <= self.attempt:
            raise self._broken(
                Broken.MIX,
                f"attempt {takeover.attempt} goes on after piece {takeover.after_seq}, "
                f"after piece {self.seq} of attempt {self.attempt}, and nothing was taken back",
            )
        self.attempt = takeover.attempt
        self.cuts[takeover.attempt] = takeover.after_seq
        return [takeover]

    def _rewind(self, rewind: Rewind) -> list[Event]:
        if rewind.to_seq >= self.seq:
            return []
        if self.end:
            raise self._broken(Broken.SECOND_END, f"a rewind to piece {rewind.to_seq} came after the end")
        self._drop_after(rewind.to_seq)
        return [rewind]

    def _drop_after(self, seq: int) -> None:
        del self.pieces[seq:]
        self.cuts = {attempt: after for attempt, after in self.cuts.items() if after < seq}
        self.attempt = self.pieces[-1].attempt if self.pieces else 0

    def _ending(self, end: End, over: Hashable) -> list[Event] | None:
        if self.end is not None:
            if over in self._ended_over:
                raise self._broken(Broken.SECOND_END, f"{end.type} came after {self.end.type} over the same connection")
            if (end.type, end.receipt) != (self.end.type, self.end.receipt):
                raise self._broken(Broken.SECOND_END, f"{end.type} came after {self.end.type}, or with another receipt")
            self._ended_over.add(over)
            return []
        if not end.recovered:
            news = self._recover(end)
        elif end.receipt.pieces > self.seq:
            return None
        else:
            self._check(end)
            news = [end]
        self.end = end
        self.conversation_id = self.conversation_id or end.conversation_id
        self._ended_over.add(over)
        return news

    def _check(self, end: End) -> None:
        if end.receipt.pieces < self.seq:
            raise self._broken(Broken.WRONG_RECEIPT, f"{self.seq} pieces came, the receipt says {end.receipt.pieces}")
        if Receipt.of(piece.text for piece in self.pieces) != end.receipt:
            raise self._broken(Broken.WRONG_RECEIPT, "the SHA-256 of the pieces is not the receipt's")
        if end.content and end.content != self.text:
            raise self._broken(Broken.MIX, "the end carries another text than the pieces")

    def _recover(self, end: End) -> list[Event]:
        if end.receipt.pieces and not end.content:
            raise self._broken(Broken.LOST_PIECE, "the text is no longer kept (was its conversation deleted?)")
        if hashlib.sha256(end.content.encode()).hexdigest() != end.receipt.sha256:
            raise self._broken(Broken.WRONG_RECEIPT, "the SHA-256 of the whole message is not the receipt's")
        fits = end.content.startswith(self.text)
        news: list[Event] = [end] if fits else [self.start_over(), end]
        self._recovered = end.content
        return news

    def _broken(self, what: Broken, detail: str) -> BrokenPromise:
        return BrokenPromise(what, detail, turn_id=self.turn_id)
