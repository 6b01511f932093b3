"""Following a turn: live events where they come, the log wherever they may not have.

What a follower passes on, over any number of connections to any nodes, joins to the stored reply (law 2). `Position`
is the pure part: it knows what was passed on so far, and says what an event means for it. `follow` feeds it.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from serve_app.chat.bus import Subscription
from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.events import Accepted, End, Event, Piece, Receipt, Rewind, Started, Takeover, is_end
from serve_app.chat.meter import UNMEASURED, Meter
from serve_app.chat.stopwatch import Stopwatch
from serve_app.chat.turns import Snapshot, TurnStore

SILENCE_S = 2.0
"""After so much silence the log is read: pub/sub may have swallowed the very last message."""


class Position:
    """How far a follower is: the last piece passed on, and the attempt it came from (0: not known yet)."""

    def __init__(self, after: int = 0, *, attempt: int = 0) -> None:
        """Start right after piece `after`, which came from `attempt` (0: not known)."""
        self.seq = after
        self.attempt = attempt if after else 0
        self.end: End | None = None
        self._from_start = after == 0
        self._texts: list[str] = []
        self._started = after > 0

    def apply(self, event: Event) -> list[Event] | None:
        """Return what to pass on because of `event`, or None if something before it is missing: read the log."""
        match event:
            case Piece():
                return self._piece(event)
            case Started():
                if self._started:
                    return []
                self._started, self.attempt = True, max(self.attempt, event.attempt)
                return [event]
            case Takeover():
                return self._takeover(event)
            case Accepted() | Rewind():
                return []
            case _ if is_end(event):
                return self._ending(event)  # type: ignore[arg-type]
            case _:
                return [event]

    def apply_log(self, snapshot: Snapshot) -> tuple[list[Event], bool]:
        """Return what to pass on because of the turn as it stands, and whether the log must be read again from here."""
        out: list[Event] = []
        if snapshot.end is not None and not snapshot.kept:
            return self.recover(snapshot, snapshot.end), False
        if (self.seq > snapshot.seq and self.attempt == 0) or self.attempt > snapshot.attempt > 0:
            # A client that resumes from beyond the log: only from the start is certain (law 10).
            self.attempt = 0
            return self._rewind(snapshot.turn_id, 0), True
        for event in snapshot.events:
            passed = self.apply(event)
            if passed is None:
                return out, True
            out += passed
        if self.attempt and snapshot.attempt > self.attempt:
            return out, True
        self.attempt = snapshot.attempt
        if snapshot.end is not None:
            out += self._log_end(snapshot, snapshot.end)
        return out, snapshot.end is not None and self.end is None

    def _piece(self, event: Piece) -> list[Event] | None:
        if event.seq <= self.seq or event.attempt < self.attempt:
            return []
        if event.seq > self.seq + 1 or (self.attempt and event.attempt > self.attempt):
            return None
        self.seq, self.attempt = event.seq, event.attempt
        if self._from_start:
            self._texts.append(event.text)
        return [event]

    def _takeover(self, event: Takeover) -> list[Event] | None:
        if event.attempt <= self.attempt:
            return []
        unseen = self.attempt and event.attempt > self.attempt + 1  # the one before may have gone on from further back
        if event.after_seq > self.seq or unseen:
            return None
        self.attempt = event.attempt
        return [*self._rewind(event.turn_id, event.after_seq), event]

    def _rewind(self, turn_id: str, to_seq: int) -> list[Event]:
        if to_seq >= self.seq:
            return []
        self.seq = to_seq
        del self._texts[to_seq:]
        if to_seq == 0:
            self._from_start, self._texts = True, []
        return [Rewind(turn_id=turn_id, to_seq=to_seq)]

    def _ending(self, end: End) -> list[Event] | None:
        if end.receipt.pieces != self.seq or not self._from_start:
            return None
        if Receipt.of(self._texts) != end.receipt:
            return None
        self.end = end.model_copy(update={"content": "".join(self._texts)})
        return [self.end]

    def _log_end(self, snapshot: Snapshot, end: End) -> list[Event]:
        out: list[Event] = []
        if self.seq > end.receipt.pieces:
            out += self._rewind(end.turn_id, end.receipt.pieces)
        if self._from_start:
            passed = self._ending(end)
            if passed is None:  # not the text of the receipt: give it all again, whichever attempt wrote it
                self.attempt = 0
                return [*out, *self._rewind(end.turn_id, 0)]
            return [*out, *passed]
        content = snapshot.reply.content if snapshot.reply else ""
        self.end = end.model_copy(update={"content": content})
        return [*out, self.end]

    def recover(self, snapshot: Snapshot, end: End) -> list[Event]:
        """Return the end with the whole message instead of pieces that are no longer kept one by one."""
        content = snapshot.reply.content if snapshot.reply else ""
        whole = self.seq == end.receipt.pieces
        self.end = end.model_copy(update={"content": content, "recovered": whole})
        return [self.end]


async def follow(
    turns: TurnStore,
    live: Subscription,
    turn_id: str,
    *,
    after: int = 0,
    attempt: int = 0,
    fresh: bool = False,
    meter: Meter = UNMEASURED,
) -> AsyncGenerator[list[Event], None]:
    """Yield the events of a turn beyond piece `after` in batches as they come, up to and with its one end.

    `attempt` is the one that wrote that piece, where the follower knows: then a log that has lost it since, and has other
    pieces there now, brings a `rewind` first (law 10). An empty batch says that nothing came for a while, for whoever must
    show that it still lives. `live` must have been confirmed before the call; with `fresh`, also before the turn began, so
    that the log need not be read at first. While the store is away nothing comes, and then everything goes on (law 9).

    Raises:
        TurnNotFound: the turn is not known, or no longer.
    """
    position, stopwatch = Position(after, attempt=attempt), Stopwatch(meter, fresh=fresh)
    behind = not fresh
    while True:
        passed: list[Event] = []
        if behind:
            try:
                passed = await _from_log(turns, turn_id, position)
                behind = False
            except StoreUnavailable:
                pass
        else:
            batch = await live.next(SILENCE_S)
            behind = batch is None
            for event in batch or ():
                news = position.apply(event)
                if news is None:
                    behind = True
                    break
                passed += news
        stopwatch.saw(passed, caught_up=not behind)
        yield passed
        if position.end is not None:
            return


async def each(batches: AsyncGenerator[list[Event], None]) -> AsyncGenerator[Event, None]:
    """Yield the events of `batches` one by one."""
    async with aclosing(batches):
        async for batch in batches:
            for event in batch:
                yield event


async def _from_log(turns: TurnStore, turn_id: str, position: Position) -> list[Event]:
    snapshot = await turns.read(turn_id, after=position.seq)
    out, again = position.apply_log(snapshot)
    for _ in range(2):
        if not again:
            return out
        # From the start nothing can be missing: what was passed on is skipped, what was rewound comes again.
        snapshot = await turns.read(turn_id)
        more, again = position.apply_log(snapshot)
        out += more
    if again and snapshot.end is not None:  # the log does not hold what the receipt says: the stored reply decides
        out += position.recover(snapshot, snapshot.end)
    return out
