"""Ten messages at once, and the primary's death in the instant after one of their answers."""

import asyncio
import os
import signal

import httpx

from tests.drills.clients.ear import now

_ANSWER_S = 5.0
_AGAIN_S = 60.0


class AcknowledgedRound:
    """One round: what was acknowledged, and when the primary was killed. To be used in the clients' network."""

    def __init__(self, name: str, primary: int, *, asked: int, kill_on: int) -> None:
        """Ask `asked` messages as clients called `name`…, and kill the process `primary` with the answer number `kill_on`."""
        self.name = name
        self.acknowledged: dict[str, tuple[str, float]] = {}
        """For each client whose message was answered with 200: the conversation, and when."""
        self.killed_at = 0.0
        self.again_after_s = 0.0
        """From the kill to the next answer of 200."""
        self._primary, self._asked, self._kill_on = primary, asked, kill_on

    async def ask(self, urls: list[str]) -> None:
        """Ask at all `urls` in turn; return when the chat answers again.

        Raises:
            TimeoutError: it does not.
        """
        async with httpx.AsyncClient(timeout=_ANSWER_S, trust_env=False, verify=False) as http:
            await asyncio.gather(*(self._one(http, urls[n % len(urls)], f"{self.name}_{n}") for n in range(self._asked)))
            if not self.killed_at:
                self._kill()
            async with asyncio.timeout(_AGAIN_S):
                for number in range(10**6):
                    if await self._answers(http, urls[number % len(urls)], f"{self.name}_again_{number}"):
                        break
                    await asyncio.sleep(0.1)
            self.again_after_s = round(now() - self.killed_at, 2)

    async def found(self, urls: list[str]) -> int:
        """Return how many of the acknowledged messages each of `urls` has in its history exactly once."""
        async with httpx.AsyncClient(timeout=20, trust_env=False, verify=False) as http:
            there = [
                [await _times(http, url, conversation, f"Remember {client}") == 1 for url in urls]
                for client, (conversation, _) in self.acknowledged.items()
            ]
        return sum(all(each) for each in there)

    def before_kill_ms(self) -> list[float]:
        """Return how long before the kill each 200 had come, in milliseconds."""
        return [round((self.killed_at - at) * 1000, 1) for _, at in self.acknowledged.values()]

    async def _one(self, http: httpx.AsyncClient, url: str, client_id: str) -> None:
        body = {"message": f"Remember {client_id}", "client_id": client_id, "options": {"words": 1}}
        try:
            answer = await http.post(f"{url}/api/chat", json=body)
        except httpx.TransportError:
            return  # not acknowledged: nothing was promised
        if answer.status_code != httpx.codes.OK:
            return
        at = now()
        if len(self.acknowledged) + 1 == self._kill_on:
            self._kill()
        self.acknowledged[client_id] = (answer.json()["conversation_id"], at)

    def _kill(self) -> None:
        os.kill(self._primary, signal.SIGKILL)
        self.killed_at = now()

    async def _answers(self, http: httpx.AsyncClient, url: str, client_id: str) -> bool:
        body = {"message": "Again?", "client_id": client_id, "options": {"words": 1}}
        try:
            return (await http.post(f"{url}/api/chat", json=body)).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


async def _times(http: httpx.AsyncClient, url: str, conversation_id: str, message: str) -> int:
    """Return how often a message is in a conversation, as one node tells it."""
    answer = await http.get(f"{url}/api/conversations/{conversation_id}/history", params={"limit": 200})
    if answer.status_code == httpx.codes.NOT_FOUND:
        return 0
    answer.raise_for_status()
    return sum(each["role"] == "user" and each["content"] == message for each in answer.json()["messages"])
