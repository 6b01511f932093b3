"""The writer of one run: collects what the engine says into pieces, and keeps the log up to date.

The first piece leaves at once; then at most one append per window. A piece is closed when it is sent, when a window has
passed since it was begun, or when it is large; from then on its boundary and number are fixed, so that sending it again after
a lost reply, or to a primary that has lost it, sends the same (law 9).
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.turns import LoggedPiece, TurnStore, Verdict

COALESCE_S, COALESCE_MOST_S = 0.025, 0.1
UNHURRIED_RUNS = 8
"""So many runs a replica has before their windows grow."""
PIECE_LIMIT = 4_096
"""Characters after which a piece is closed: bounds the size of an event."""
BUFFER_LIMIT = 262_144
"""Characters not yet acknowledged, beyond which the engine is not read any further (law 9)."""
APPEND_LIMIT = 64
"""Pieces in one append."""


def window_s(runs: int) -> float:
    """Return how long a replica with so many `runs` collects what each of them says, in seconds.

    An append costs the same however much it carries, and a reader does not see the difference between 40 and 10 of them a second
    as well as that between an answer and a queue: so the window grows with the load (docs/decisions/0017-a-window-that-grows.md).
    """
    return min(COALESCE_MOST_S, COALESCE_S * max(1.0, runs / UNHURRIED_RUNS))


class Superseded(Exception):
    """This run may write nothing more."""

    def __init__(self, verdict: Verdict = Verdict.SUPERSEDED) -> None:
        """Keep how the store put it."""
        super().__init__(verdict)
        self.verdict = verdict


class Writer:
    """Writes one attempt's pieces. Use as `async with`: leaving it ends the appending, not the turn."""

    def __init__(
        self,
        turns: TurnStore,
        turn_id: str,
        *,
        token: str,
        attempt: int,
        pieces: Sequence[LoggedPiece],
        window: Callable[[], float] = lambda: COALESCE_S,
    ) -> None:
        """Go on after `pieces`, which earlier attempts wrote; `window` says how long to collect, in seconds."""
        self._turns = turns
        self._turn_id = turn_id
        self._token = token
        self._attempt = attempt
        self._window = window
        self.pieces: list[LoggedPiece] = list(pieces)
        self.acknowledged = len(self.pieces)
        self._open: list[str] = []
        self._open_ids: list[int] = []
        self._open_size = 0
        self._open_since = 0.0
        self._unsent = 0
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.refused: Verdict | None = None

    async def __aenter__(self) -> "Writer":
        """Start appending."""
        self._task = asyncio.create_task(self._append_for_ever())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop appending; an append in flight is let through, what remains goes with `finish`.

        Raises:
            Superseded: the turn was not this run's any more.
        """
        self.stop_appending()
        self._wake.set()
        self._close_piece()
        task, self._task = self._task, None
        if task is not None:
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                task.cancel()
                raise
        if kind is None and self.refused is not None:
            raise Superseded(self.refused)

    def stop_appending(self) -> None:
        """Say that the engine is through: what is not on its way yet goes with `finish`."""
        self._closing.set()

    @property
    def closed(self) -> bool:
        """Whether the engine is through with this run."""
        return self._closing.is_set()

    @property
    def full(self) -> bool:
        """Whether the engine must wait."""
        return self._unsent > BUFFER_LIMIT

    @property
    def said_anything(self) -> bool:
        """Whether the turn has any text yet, from this attempt or an earlier one."""
        return bool(self.pieces or self._open)

    def text(self) -> str:
        """Return the whole reply so far."""
        return "".join(piece.text for piece in self.pieces) + "".join(self._open)

    async def room(self) -> None:
        """Wait until the buffer has room again."""
        while self.full and self.refused is None:
            self._room.clear()
            await self._room.wait()

    def add(self, text: str, token_ids: Sequence[int] = ()) -> None:
        """Take what the engine said.

        Raises:
            Superseded: the turn is not this run's any more.
        """
        if self.refused is not None or self.closed:  # closed: an engine that goes on although it was stopped
            raise Superseded(self.refused or Verdict.SUPERSEDED)
        text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be stored
        now = self._loop.time()
        if self._open and (now - self._open_since >= self._window() or self._open_size >= PIECE_LIMIT):
            self._close_piece()
        if not self._open:
            self._open_since = now
        self._open.append(text)
        self._open_ids.extend(token_ids)
        self._open_size += len(text)
        self._unsent += len(text)
        self._wake.set()

    def _close_piece(self) -> None:
        if self._open:
            piece = LoggedPiece(len(self.pieces) + 1, self._attempt, "".join(self._open), tuple(self._open_ids))
            self.pieces.append(piece)
            self._open, self._open_ids, self._open_size = [], [], 0

    async def _append_for_ever(self) -> None:
        try:
            await self._appending()
        except Exception:
            self.refused = Verdict.SUPERSEDED  # the engine must not go on, or wait for room, for nobody
            self._room.set()
            raise

    async def _appending(self) -> None:
        while True:
            await self._wake.wait()
            if self.closed or self.refused is not None:
                return
            self._wake.clear()
            self._close_piece()
            if self.acknowledged < len(self.pieces):
                await self._append()
                # Not a bare sleep: the end of the reply must not wait for the rest of the window.
                await self._pause(self._window())
                if self.acknowledged < len(self.pieces) or self._open:
                    self._wake.set()

    async def _append(self) -> None:
        batch = self.pieces[self.acknowledged : self.acknowledged + APPEND_LIMIT]
        try:
            verdict, seq = await self._turns.append(self._turn_id, token=self._token, pieces=batch)
        except StoreUnavailable:
            await self._pause(0.1)
            return
        if verdict is Verdict.OK:
            self._acknowledge(batch[-1].seq)
        elif verdict is Verdict.EXPECT:
            self._acknowledge(seq - 1)
        else:
            self.refused = verdict
            self._room.set()

    def _acknowledge(self, seq: int) -> None:
        low, high = sorted((self.acknowledged, seq))
        size = sum(len(piece.text) for piece in self.pieces[low:high])
        self._unsent += size if seq < self.acknowledged else -size
        self.acknowledged = seq
        self._room.set()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
