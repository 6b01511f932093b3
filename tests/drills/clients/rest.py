"""REST as with curl: one request, one answer, nothing tried again."""

import httpx

from tests.drills.clients.ear import GIVE_UP_S, body_of, fail, now
from tests.drills.seen import Asked

_KEPT = ("turn_id", "conversation_id", "response", "status", "receipt", "node", "generated_on", "attempt")


class RestClient:
    """Sends a message to the first door and waits for the whole answer."""

    def __init__(self, http: httpx.AsyncClient, urls: dict[str, str]) -> None:
        """Ask over `http` at `urls`, by door."""
        self._http, self._urls = http, urls

    async def ask(self, asked: Asked) -> None:
        """Ask, and write down the answer or the failure."""
        timeout = httpx.Timeout(asked.words / asked.words_per_second + GIVE_UP_S, connect=10.0)
        try:
            response = await self._http.post(f"{self._urls[asked.door]}/api/chat", json=body_of(asked), timeout=timeout)
            answer = response.json() if response.status_code == 200 else {}
        except (httpx.TransportError, ValueError) as error:
            fail(asked, asked.door, error)
        else:
            if response.status_code == 200:
                asked.answer = {name: answer[name] for name in _KEPT}
                asked.turn_id = str(answer["turn_id"])
                asked.acknowledged_at = asked.ended_at = now()
            else:
                fail(asked, asked.door, f"{response.status_code} {response.text}")
