"""Conversations in Redis. Knows nothing of engines or HTTP."""

import orjson

from serve_app.chat.conversations import Conversation, ConversationStore, Page
from serve_app.chat.errors import ConversationNotFound
from serve_app.chat.messages import Message
from serve_app.state.scripts import Scripts


class RedisConversations(ConversationStore):
    """Keeps conversations in Redis, shared by every node."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def create(
        self, *, client_id: str, personality: str, title: str, node: str, timestamp: str, unix: int, marker: str
    ) -> Conversation:
        """See `ConversationStore.create`."""
        raw = await self._scripts.run("create", client_id, personality, title, node, timestamp, unix, marker, kept=bool)
        return Conversation(raw.decode(), client_id, personality, title, timestamp, timestamp, 0)

    async def history(self, conversation_id: str, *, limit: int, before: int = 0) -> Page:
        """See `ConversationStore.history`."""
        reply = await self._scripts.run("history", conversation_id, limit, before, "")
        if reply == [b"untold"]:
            reply = await self._scripts.run("history", conversation_id, limit, before, "1", kept=bool)
        if not reply:
            raise ConversationNotFound()
        messages = tuple(
            Message.model_validate({**orjson.loads(raw), "seq": int(seq)})
            for seq, raw in zip(reply[2::2], reply[3::2], strict=True)
        )
        return Page(conversation_id, reply[0].decode(), messages, int(reply[1]))

    async def list(self, client_id: str, *, limit: int, offset: int) -> tuple[list[Conversation], int]:
        """See `ConversationStore.list`."""
        total, *flat = (item.decode() for item in await self._scripts.run("conversations", client_id, limit, offset))
        found = []
        for i in range(0, len(flat), 6):
            conversation_id, personality, title, created, updated, last = flat[i : i + 6]
            found.append(Conversation(conversation_id, client_id, personality, title, created, updated, int(last)))
        return found, int(total)

    async def delete(self, conversation_id: str, *, client_id: str) -> str | None:
        """See `ConversationStore.delete`."""
        reply = await self._scripts.run("delete", conversation_id, client_id, kept=lambda reply: reply[0] == b"ok")
        how, *turn = (item.decode() for item in reply)
        if how == "none":
            raise ConversationNotFound()
        return turn[0] if how == "open" else None
