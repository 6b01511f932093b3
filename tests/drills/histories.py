"""What is stored, as two nodes tell it over the public API; and what the right answers would have been."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from serve_app.chat.engine import PromptMessage
from serve_app.chat.messages import Message, Role
from tests.drills.checker import Verdict, judge
from tests.drills.seen import Asked
from tests.support.serving import undisturbed

_PAGE = 200
_SETTLED_S = 90.0
_AT_ONCE = 8

Conversations = Sequence[Sequence[Message]]


@dataclass(frozen=True)
class Stored:
    """All conversations of one client, by the node that was asked."""

    by_node: Mapping[str, Conversations]

    def messages(self) -> dict[str, list[Message]]:
        """Every message, by node."""
        return {node: [m for conversation in found for m in conversation] for node, found in self.by_node.items()}

    def before(self, asked: Asked) -> list[PromptMessage]:
        """What the engine knew of the conversation when it was asked this."""
        for conversation in next(iter(self.by_node.values())):
            for place, message in enumerate(conversation):
                if message.role == Role.USER and message.content == asked.message:
                    return [PromptMessage(m.role, m.content) for m in conversation[:place] if m.status != "failed"]
        return []

    def is_settled(self) -> bool:
        """Whether every message has its reply."""
        return all(
            sum(m.role == Role.USER for m in conversation) <= sum(m.role == Role.ASSISTANT for m in conversation)
            for conversations in self.by_node.values()
            for conversation in conversations
        )


async def judge_all(asked: Sequence[Asked], urls: Mapping[str, str]) -> list[Verdict]:
    """Return what became of every message, once the nodes at `urls` have stored what they are still to store.

    Raises:
        httpx.HTTPError: a node does not answer.
    """
    clients = sorted({one.client_id for one in asked})
    limit = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(timeout=20, trust_env=False, verify=False) as http:
        found = await asyncio.gather(*(_settled(http, urls, client_id, limit) for client_id in clients))
    stored = dict(zip(clients, found, strict=True))
    verdicts = []
    for one in asked:
        mine = stored[one.client_id]
        right = await undisturbed(one.message, {"words": one.words}, personality=one.personality, history=mine.before(one))
        verdicts.append(judge(one, right, mine.messages()))
    return verdicts


async def _settled(http: httpx.AsyncClient, urls: Mapping[str, str], client_id: str, limit: asyncio.Semaphore) -> Stored:
    """Return what is stored of a client, after its last reply; as it is, if that never comes."""
    deadline = time.monotonic() + _SETTLED_S
    while True:
        async with limit:
            stored = Stored({node: await _conversations(http, url, client_id) for node, url in urls.items()})
        if stored.is_settled() or time.monotonic() > deadline:
            return stored
        await asyncio.sleep(0.5)


async def _conversations(http: httpx.AsyncClient, url: str, client_id: str) -> list[list[Message]]:
    answer = await http.get(f"{url}/api/conversations", params={"client_id": client_id, "limit": _PAGE})
    answer.raise_for_status()
    names = sorted(conversation["conversation_id"] for conversation in answer.json()["conversations"])
    return [await _history(http, url, name) for name in names]


async def _history(http: httpx.AsyncClient, url: str, conversation_id: str) -> list[Message]:
    messages: list[Message] = []
    before: int | None = 0
    while before is not None:
        params = {"limit": _PAGE, "before": before}
        answer = await http.get(f"{url}/api/conversations/{conversation_id}/history", params=params)
        answer.raise_for_status()
        page = answer.json()
        messages = [Message.model_validate(m) for m in page["messages"]] + messages
        before = page.get("before")
    return messages
