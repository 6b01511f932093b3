"""The turn as values, and the port through which the core reaches what is kept of it.

A turn is one user message and the reply it causes: a record with a log, not a coroutine (design, section 3). The
port is implemented in `serve_app.state`; each method is one script there, hence one round trip, all or nothing, and
idempotent: called again with the same arguments after a lost reply, it changes nothing and answers the same. Where the
store has replicas, what a method says about a message or an end is on enough of them when it returns (law 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from serve_app.chat.events import End, Event
from serve_app.chat.messages import Message, Role
from serve_app.chat.options import Options
from serve_app.chat.personalities import PinnedPersonality

LEASE_MS = 2_500
"""How long a turn belongs to its holder without a word from it, by the store's clock (law 7).

The law allows 3 s; half a second less leaves room for the next attempt to be under way within 3 s of a death.
"""
BARREN_ATTEMPTS = 3
"""Attempts in a row without a new piece, after which a turn ends as failed (law 7)."""


class Verdict(StrEnum):
    """How the store answered the holder of a turn."""

    OK = "ok"
    EXPECT = "expect"
    """The log is shorter than the writer thought: send again from the named seq (law 9)."""
    SUPERSEDED = "superseded"
    """Somebody else holds the turn: this holder may write nothing more (law 3)."""
    CLOSING = "closing"
    """The turn has its end, which is not shown yet: `TurnStore.announce` shows it once it is kept (law 8)."""
    GONE = "gone"
    """The turn has ended or is no longer known."""
    WAIT = "wait"
    """The run died, not for the first time: the turn is due when its lease lapses (law 7)."""
    MOVED = "moved"
    """The node of this run is leaving: the turn was given back, and goes on elsewhere at once."""
    GAVE_UP = "gave_up"
    """The replica's engine failed: the turn was given back, and another replica or pool may go on at once."""
    UNFIT = "unfit"
    """The pool's engine cannot answer this turn: it was given back, and another pool may go on at once."""
    SILENT = "silent"
    """What the pool's replicas share says nothing: like `UNFIT`, and the replica is to get no turn for a while."""
    EXHAUSTED = "exhausted"
    """Three attempts in a row brought no new piece (law 7)."""


@dataclass(frozen=True)
class NewTurn:
    """What an ingress asks for: everything that `begin` keeps. Empty strings mean: not given."""

    turn_id: str
    token: str
    client_id: str
    content: str
    node: str
    timestamp: str
    personality: str
    default_personality: str
    conversation_id: str = ""
    options: Options = field(default_factory=Options.model_construct)
    idempotency_key: str = ""
    body_hash: str = ""
    title: str = ""
    unix: int = 0
    deadline_ms: int = 900_000
    max_open_turns: int = 10_000
    undelivered: bool = False
    """Who asked can neither resume nor ask again: until `delivered`, the end is owed to the client's next connection."""


class RecentTurn(NamedTuple):
    """A turn of a client, as a new connection finds it; `undelivered` as in `NewTurn`."""

    turn_id: str
    is_open: bool = False
    undelivered: bool = False


@dataclass(frozen=True)
class Begun:
    """A turn that is kept. `attached`: it had begun before, under the same idempotency key (law 6)."""

    turn_id: str
    conversation_id: str
    message_seq: int
    personality: str
    attached: bool = False
    warm: str = ""
    """The replica that answered this conversation before, and may hold its beginning in its cache."""


@dataclass(frozen=True)
class Plan:
    """How a turn is answered. The personality is pinned at the first claim, and the same for every later attempt (law 5).

    Pool and model are the attempt's own, taken from the personality's chain: a later one may go on in another pool where this
    one is gone. `model` is empty for the pool's own.
    """

    pool: str
    personality: PinnedPersonality
    model: str = ""


@dataclass(frozen=True)
class LoggedPiece:
    """A piece as the log keeps it: with its number, its attempt and the token ids behind it, if any."""

    seq: int
    attempt: int
    text: str
    token_ids: tuple[int, ...] = ()


class PastMessage(NamedTuple):
    """What a run needs to know of an earlier message; many of them come with every claim."""

    role: Role
    content: str
    status: str = ""


@dataclass(frozen=True)
class Claim:
    """What a run gets with its claim: who it is, what to answer, and what was already said.

    `same_model`: all that was said came from the run's own model, so that its token ids are to be gone on from.
    """

    attempt: int
    client_id: str
    conversation_id: str
    node: str
    plan: Plan
    options: Options
    history: tuple[PastMessage, ...]
    pieces: tuple[LoggedPiece, ...]
    remaining_ms: int
    same_model: bool = True


@dataclass(frozen=True)
class Due:
    """A turn whose holder is gone, handed to exactly one router together with a new dispatch token.

    `pool` is that of the last attempt, empty before the first claim; `barren` counts attempts in a row without a new piece. One
    that is `closing` has its end already, with the token of whoever ended it: all it needs is `TurnStore.announce`.
    """

    turn_id: str
    token: str
    personality: str
    attempt: int
    barren: int
    stopping: bool
    overdue: bool
    pool: str = ""
    closing: bool = False


class Swept(NamedTuple):
    """What a sweep found: the turns that are due, and in how many seconds the next lease lapses, should nobody renew it."""

    due: list[Due]
    lapses_s: float | None


class Failure(NamedTuple):
    """Why a run gave its turn back, as the turn's end says it where nobody else can go on; see `ChatError`."""

    code: str
    message: str
    retryable: bool


@dataclass(frozen=True)
class Held:
    """An open turn, taken over in order to end it: what its end has to say.

    `pool` and `model` are those of the last attempt, empty before the first claim; `failure` is why that gave the turn back.
    """

    turn_id: str
    token: str
    client_id: str
    conversation_id: str
    personality: str
    node: str
    generated_on: str
    attempt: int
    pool: str
    model: str
    failure: Failure | None
    pieces: tuple[LoggedPiece, ...]


@dataclass(frozen=True)
class Snapshot:
    """A turn as it stands: its state, the events beyond the position asked for, and its end, if it has one.

    `kept` is false where the pieces are no longer kept one by one; then `reply` is all there is.
    """

    turn_id: str
    client_id: str
    conversation_id: str
    personality: str
    state: str
    attempt: int
    seq: int
    message_seq: int
    created: str
    events: tuple[Event, ...]
    end: End | None
    kept: bool
    reply: Message | None


class TurnStore(Protocol):
    """Everything that can happen to a turn, for ingress, router and inference."""

    async def begin(self, new: NewTurn) -> Begun:
        """Keep a user message and open its turn, dispatched to whoever has `new.token`.

        Raises:
            ConversationNotFound: `new.conversation_id` is not a conversation of this client.
            TurnInProgress: the conversation has an open turn (law 11).
            IdempotencyMismatch: the key was used with another body.
            Overloaded: more than `new.max_open_turns` are open.
            StoreUnavailable: no answer in time; the same call again is safe.
        """
        ...

    async def claim(
        self,
        turn_id: str,
        *,
        dispatch: str,
        run: str,
        node: str,
        plan: Plan,
        window: int,
        replica: str = "",
        engine: str = "",
        model: str = "",
    ) -> Claim | Verdict:
        """Begin an attempt: exchange the dispatch token for the run's. Only this counts as an attempt (law 7).

        `node` and `replica` say where it runs, `model` what answers there, `engine` of what kind it is, and `window` how many of
        the last messages the claim brings with it. Devices are shown the model's name; under another kind of engine it is another
        model, whatever its name (`Claim.same_model`).
        """
        ...

    async def append(self, turn_id: str, *, token: str, pieces: Sequence[LoggedPiece]) -> tuple[Verdict, int]:
        """Add pieces to the log and tell the followers; renews the lease. With `EXPECT`, the seq to send from."""
        ...

    async def renew(self, held: Sequence[tuple[str, str]], *, queued: dict[str, Event] | None = None) -> set[str]:
        """Renew the leases of (turn_id, token) pairs and return the tokens that hold nothing any more.

        Tokens, not ids: two runs of one turn may meet in one replica, and only one of them is lost. Past a turn's deadline,
        with some grace, no lease is renewed, so that a sweep ends it. `queued` events go to the devices.
        """
        ...

    async def finish(
        self, turn_id: str, *, token: str, end: End, tail: Sequence[LoggedPiece] = (), from_seq: int
    ) -> tuple[Verdict, int]:
        """Add the last pieces, store the reply and end the turn (law 1). `from_seq` is the seq of the first of `tail`.

        With replicas, the end is stored, waited for, and then announced: nobody sees it before it is kept (law 8).

        Raises:
            StoreUnavailable: the end may be stored, but is not known to be kept; the same call again is safe, and so is
                leaving it: a sweep finds the turn, `closing`.
        """
        ...

    async def announce(self, turn_id: str, *, token: str = "") -> Verdict:
        """Show the end of a turn that is closing (law 8), whoever closed it. `OK`, or why there was nothing to announce.

        `token` is the one that a sweep handed out with it; without, what was stored is waited for first.
        """
        ...

    async def release(
        self,
        turn_id: str,
        *,
        token: str,
        dispatch: str,
        tail: Sequence[LoggedPiece] = (),
        from_seq: int,
        reason: Verdict = Verdict.MOVED,
        failure: Failure | None = None,
    ) -> tuple[Verdict, int]:
        """Add the last pieces of a run that leaves its turn to another, and give the turn back to whoever has `dispatch`.

        A turn that was `MOVED` is due at once, and the attempt does not count as barren. With the `failure` of an engine it has a
        dispatch lease, and the attempt counts unless it brought a piece. `from_seq` is the seq of the first of `tail`.
        """
        ...

    async def hand_over(self, held: Sequence[tuple[str, str]]) -> None:
        """Let other routers take on turns that nobody has claimed: (turn_id, dispatch token) pairs. They are due at once."""
        ...

    async def hold(self, turn_id: str, *, token: str, stopping: bool, mine: str = "") -> Held | Verdict:
        """Take an open turn away from whoever has it, in order to end it. With `mine`, only from that holder.

        One that is `CLOSING` keeps the end that it has.
        """
        ...

    async def redispatch(self, turn_id: str, *, dispatch: str, run: str, token: str) -> Due | Verdict:
        """Take a turn back from a run that is known to be dead, whether or not it had claimed (`run`) its `dispatch`."""
        ...

    async def sweep(self, *, token: str, batch: int) -> Swept:
        """Return turns that are due, each now dispatched to the caller (law 7); what they hold so far is kept (law 8)."""
        ...

    async def read(self, turn_id: str, *, after: int = 0) -> Snapshot:
        """Return the turn and its events beyond piece `after`.

        Raises:
            TurnNotFound: it never was, or ended too long ago.
        """
        ...

    async def recent_turns(self, client_id: str) -> list[RecentTurn]:
        """Return the client's turns whose logs are kept, oldest first."""
        ...

    async def delivered(self, turn_id: str) -> None:
        """Note that whoever asked was given the end. Idempotent; where it is lost, the end may be given again."""
        ...
