"""What an ingress does for its callers: begin a turn, follow it, stop it; conversations and sessions.

The same for REST, SSE and WebSocket. Knows the ports, not what is behind them.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.chat import ids
from serve_app.chat.bus import Bus, Subscription
from serve_app.chat.conversations import Conversation, ConversationStore, Page, Session, SessionStore
from serve_app.chat.drain import Departure
from serve_app.chat.ending import stop_turn
from serve_app.chat.errors import ConversationNotFound
from serve_app.chat.events import Accepted, Event
from serve_app.chat.follow import each, follow
from serve_app.chat.messages import now
from serve_app.chat.meter import UNMEASURED, Meter
from serve_app.chat.options import OptionLimits, Options
from serve_app.chat.personalities import Personalities
from serve_app.chat.turns import Begun, NewTurn, RecentTurn, Snapshot, TurnStore

log = logging.getLogger(__name__)
TITLE_LENGTH = 60


class Dispatcher(Protocol):
    """How an ingress hands a turn to a router."""

    async def take_turn(self, turn_id: str, *, token: str, personality: str, warm: str = "") -> None:
        """Have a router supervise the turn. A failure is no failure of the turn: a sweep finds it (law 7)."""
        ...


@dataclass(frozen=True)
class Ask:
    """A message somebody wants answered. Empty strings mean: not given."""

    client_id: str
    message: str
    personality: str = ""
    conversation_id: str = ""
    idempotency_key: str = ""
    options: Options = field(default_factory=Options.model_construct)
    undelivered: bool = False
    """See `NewTurn.undelivered`."""

    def body_hash(self) -> str:
        """Return what tells one body from another under the same idempotency key (law 6)."""
        body = [self.message, self.personality, self.conversation_id, self.options.asked()]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ServiceConfig:
    """Limits of the chat service."""

    limits: OptionLimits = field(default_factory=lambda: OptionLimits.model_construct())
    deadline_s: int = 900
    max_open_turns: int = 10_000


class ChatService:
    """The chat, as an ingress sees it."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        conversations: ConversationStore,
        sessions: SessionStore,
        bus: Bus,
        dispatcher: Dispatcher,
        personalities: Personalities,
        node: str,
        config: ServiceConfig,
        meter: Meter = UNMEASURED,
        departure: Departure | None = None,
    ) -> None:
        """Serve from `node`; `personalities` may be replaced at any time. `departure`: whether the node is leaving."""
        self._turns = turns
        self._conversations = conversations
        self._sessions = sessions
        self._bus = bus
        self._dispatcher = dispatcher
        self.personalities = personalities
        self.node = node
        self.meter = meter
        self.departure = departure or Departure()
        self.in_flight = 0
        """Requests and connections being served; `serve_app.api` counts them."""
        self._config = config
        self._background: set[asyncio.Task[None]] = set()

    async def begin(self, ask: Ask, *, turn_id: str = "") -> Begun:
        """Keep the message, open its turn and hand it to a router. What it returns is kept, whatever dies next.

        `turn_id` is the id to give a new turn, for a caller that must know it before; without it, one is made.

        Raises:
            ChatError: see `TurnStore.begin`; also PersonalityNotFound and OptionRefused. Nothing was stored then.
        """
        if ask.personality:
            self.personalities.get(ask.personality)
        options = self._config.limits.check(ask.options)
        token = ids.new_token()
        begun = await self._turns.begin(
            NewTurn(
                turn_id=turn_id or ids.new_turn_id(),
                token=token,
                client_id=ask.client_id,
                content=ask.message,
                node=self.node,
                timestamp=now(),
                personality=ask.personality,
                default_personality=self.personalities.default,
                conversation_id=ask.conversation_id,
                options=options,
                idempotency_key=ask.idempotency_key,
                body_hash=ask.body_hash() if ask.idempotency_key else "",
                title=_title(ask.message),
                unix=int(time.time()),
                deadline_ms=self._config.deadline_s * 1000,
                max_open_turns=self._config.max_open_turns,
                undelivered=ask.undelivered,
            )
        )
        if not begun.attached:
            self._dispatch(begun, token)
        return begun

    def _dispatch(self, begun: Begun, token: str) -> None:
        work = self._dispatcher.take_turn(begun.turn_id, token=token, personality=begun.personality, warm=begun.warm)
        self._apart(work, f"Turn {begun.turn_id} could not be handed to a router, a sweep finds it")

    def _apart(self, work: Coroutine[Any, Any, None], failed: str) -> None:
        """Do `work` in a task and context of its own: the caller may leave, the turn must not (law 4)."""
        task = asyncio.create_task(self._safely(work, failed), context=contextvars.Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @staticmethod
    async def _safely(work: Awaitable[None], failed: str) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it is, what failed is made good elsewhere
            log.warning("%s: %s.", failed, type(error).__name__)

    async def close(self) -> None:
        """Let what is on its way in the background arrive; what has not after a second is left to who makes it good."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def listen(self, client_id: str, *, turn_id: str = "") -> AsyncIterator[Subscription]:
        """Listen to what happens to a client's turns, from now on."""
        async with self._bus.listen(client_id, turn_id=turn_id) as live:
            yield live

    async def ask_in_batches(self, ask: Ask) -> AsyncGenerator[list[Event], None]:
        """Begin a turn and yield its events in batches: `accepted` alone first, its end last; see `chat.follow.follow`.

        Raises:
            ChatError: before the first batch only; see `begin`.
        """
        async with self._bus.listen(ask.client_id) as live:
            begun = await self.begin(ask)
            yield [self.accepted(begun, ask.message)]
            only = _OnlyOne(live, begun.turn_id)
            async with aclosing(follow(self._turns, only, begun.turn_id, fresh=not begun.attached, meter=self.meter)) as batches:
                async for batch in batches:
                    yield batch

    def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """Begin a turn and yield its events one by one; see `ask_in_batches`."""
        return each(self.ask_in_batches(ask))

    def accepted(self, begun: Begun, content: str) -> Accepted:
        """Return the event that says so."""
        return Accepted(
            turn_id=begun.turn_id,
            conversation_id=begun.conversation_id,
            message_seq=begun.message_seq,
            personality=begun.personality,
            content=content,
            node=self.node,
        )

    async def follow_in_batches(self, turn_id: str, *, after: int = 0, attempt: int = 0) -> AsyncGenerator[list[Event], None]:
        """Yield a turn's events beyond piece `after`, which `attempt` wrote, in batches; from the start also `accepted`.

        Raises:
            TurnNotFound: before the first batch only.
        """
        snapshot = await self._turns.read(turn_id, after=after)
        if after == 0:
            yield [
                Accepted(
                    turn_id=turn_id,
                    conversation_id=snapshot.conversation_id,
                    message_seq=snapshot.message_seq,
                    personality=snapshot.personality,
                )
            ]
        async with (
            self._bus.listen(snapshot.client_id, turn_id=turn_id) as live,
            aclosing(follow(self._turns, live, turn_id, after=after, attempt=attempt, meter=self.meter)) as batches,
        ):
            async for batch in batches:
                yield batch

    def follow(self, turn_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """Yield a turn's events one by one; see `follow_in_batches`."""
        return each(self.follow_in_batches(turn_id, after=after))

    def follow_live(
        self, turn_id: str, live: Subscription, *, after: int = 0, attempt: int = 0, fresh: bool = False
    ) -> AsyncGenerator[Event, None]:
        """Yield a turn's events beyond piece `after` through a subscription of the caller's; see `chat.follow.follow`."""
        return each(follow(self._turns, live, turn_id, after=after, attempt=attempt, fresh=fresh, meter=self.meter))

    async def turn(self, turn_id: str) -> Snapshot:
        """Return a turn as it stands.

        Raises:
            TurnNotFound: it never was, or ended too long ago.
        """
        return await self._turns.read(turn_id)

    async def recent_turns(self, client_id: str) -> list[RecentTurn]:
        """Return a client's turns whose logs are kept, oldest first."""
        return await self._turns.recent_turns(client_id)

    def delivered(self, turn_id: str) -> None:
        """Note that whoever asked was given the end of a turn that was `undelivered`; does not wait for it."""
        self._apart(self._turns.delivered(turn_id), f"Turn {turn_id} could not be noted as delivered, its end may come again")

    async def stop(self, turn_id: str) -> Snapshot:
        """Stop a turn and return it; one that has ended stays as it ended.

        Raises:
            TurnNotFound: it never was, or ended too long ago.
        """
        while True:
            await stop_turn(self._turns, turn_id, meter=self.meter)
            if (turn := await self._turns.read(turn_id)).end is not None:  # else another stop took it out of our hands
                return turn

    async def create_conversation(
        self, *, client_id: str, personality: str, title: str, idempotency_key: str = ""
    ) -> Conversation:
        """Start a conversation; it becomes the session's current one with this personality.

        Called again with the same `idempotency_key` while it is that, it starts no second one.
        """
        name = personality or self.personalities.default
        self.personalities.get(name)
        return await self._conversations.create(
            client_id=client_id,
            personality=name,
            title=title,
            node=self.node,
            timestamp=now(),
            unix=int(time.time()),
            marker=idempotency_key or ids.new_token(),
        )

    async def conversations(self, client_id: str, *, limit: int, offset: int) -> tuple[list[Conversation], int]:
        """Return a page of a client's conversations, last used first, and how many there are."""
        return await self._conversations.list(client_id, limit=limit, offset=offset)

    async def history(self, conversation_id: str, *, limit: int, before: int = 0) -> Page:
        """Return the last messages of a conversation before seq `before` (0: the newest).

        Raises:
            ConversationNotFound: there is none, or it was deleted.
        """
        return await self._conversations.history(conversation_id, limit=limit, before=before)

    async def delete_conversation(self, conversation_id: str, *, client_id: str) -> None:
        """End its open turn, then delete it (law 12).

        Raises:
            ConversationNotFound: it is not a conversation of this client.
        """
        for _ in range(10):
            open_turn = await self._conversations.delete(conversation_id, client_id=client_id)
            if open_turn is None:
                return
            await stop_turn(self._turns, open_turn, meter=self.meter)
        raise ConversationNotFound("The conversation is in use without pause; stop its senders and try again.")

    async def touch_session(self, client_id: str, *, connected: bool = False) -> Session:
        """Create or prolong a client's session."""
        session, _ = await self._sessions.touch(client_id=client_id, node=self.node, timestamp=now(), connected=connected)
        return session

    async def sessions(self, *, limit: int, offset: int) -> tuple[list[Session], int]:
        """Return a page of the live sessions and how many there are."""
        return await self._sessions.list(limit=limit, offset=offset)


class _OnlyOne(Subscription):
    """A client's subscription, reduced to one turn: it was made before the turn had an id."""

    def __init__(self, live: Subscription, turn_id: str) -> None:
        self._live = live
        self._turn_id = turn_id

    async def next(self, timeout: float) -> list[Event] | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while True:
            batch = await self._live.next(max(0.0, until - loop.time()))
            if batch is None or batch[0].turn_id == self._turn_id:
                return batch


def _title(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"
