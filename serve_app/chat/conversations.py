"""Conversations and sessions as values, and the ports through which the core reaches what is kept of them.

Implemented in `serve_app.state`, each method as one script, like the ports of `chat.turns`.
"""

from dataclasses import dataclass
from typing import Protocol

from serve_app.chat.messages import Message


@dataclass(frozen=True)
class Conversation:
    """A conversation as a list shows it."""

    conversation_id: str
    client_id: str
    personality: str
    title: str
    created: str
    updated: str
    messages: int


@dataclass(frozen=True)
class Page:
    """Messages of one conversation, in order, and whether older ones exist before them."""

    conversation_id: str
    client_id: str
    messages: tuple[Message, ...]
    total: int


class ConversationStore(Protocol):
    """Conversations, shared by every node."""

    async def create(
        self, *, client_id: str, personality: str, title: str, node: str, timestamp: str, unix: int, marker: str
    ) -> Conversation:
        """Start an empty conversation and make it the session's current one with this personality."""
        ...

    async def history(self, conversation_id: str, *, limit: int, before: int = 0) -> Page:
        """Return the last `limit` messages before seq `before` (0: the newest).

        Raises:
            ConversationNotFound: there is none, or it was deleted.
        """
        ...

    async def list(self, client_id: str, *, limit: int, offset: int) -> tuple[list[Conversation], int]:
        """Return a client's conversations, last used first, and how many there are."""
        ...

    async def delete(self, conversation_id: str, *, client_id: str) -> str | None:
        """Delete it, or return the id of the open turn that must end first (law 12).

        Raises:
            ConversationNotFound: it is not a conversation of this client.
        """
        ...


@dataclass(frozen=True)
class Session:
    """A client's presence record."""

    client_id: str
    user_id: str
    node: str
    created_at: str
    connected_at: str
    status: str
    conversations: dict[str, str]


class SessionStore(Protocol):
    """Presence, shared by every node."""

    async def touch(self, *, client_id: str, node: str, timestamp: str, connected: bool) -> tuple[Session, bool]:
        """Create or prolong the session of a client; return it, and whether it is new."""
        ...

    async def list(self, *, limit: int, offset: int) -> tuple[list[Session], int]:
        """Return live sessions, latest activity first, and how many there are."""
        ...
