"""Server-sent events without the client library: asked once, or going on at the next door from the last piece."""

import asyncio
import uuid
from typing import Any

import httpx

from serve_app.client.sse import BadStream, read_events
from tests.drills.clients.ear import GIVE_UP_S, Ear, body_of, fail, now

_SILENCE_S = 2.5
"""An answer of some words a second that says nothing for so long makes a client that goes on try the next door."""
_PAUSE_S = 0.2


class SseClient:
    """Asks with `"stream": true`; if it goes on, with an idempotency key, then with `/events?after=`."""

    def __init__(self, http: httpx.AsyncClient, urls: dict[str, str], doors: list[str], *, goes_on: bool) -> None:
        """Ask over `http` at `doors`, whose URLs are in `urls`."""
        self._http, self._urls, self._doors, self._goes_on = http, urls, list(doors), goes_on
        self._timeout = httpx.Timeout(_SILENCE_S, connect=1.0) if goes_on else httpx.Timeout(GIVE_UP_S, connect=10.0)

    async def ask(self, ear: Ear) -> None:
        """Ask, and listen to the end."""
        begin: dict[str, Any] = {"method": "POST", "url": "/api/chat", "json": {**body_of(ear.asked), "stream": True}}
        if self._goes_on:
            begin["headers"] = {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            await self._listen(ear, begin)
            if not ear.open or not self._goes_on or now() > ear.deadline():
                return
            self._doors = self._doors[1:] + self._doors[:1]
            await asyncio.sleep(_PAUSE_S)

    async def _listen(self, ear: Ear, begin: dict[str, Any]) -> None:
        door, request = self._doors[0], dict(begin)
        if ear.turn_id:
            params = {"after": ear.seq, "attempt": ear.attempt, "client_id": ear.asked.client_id}
            request = {"method": "GET", "url": f"/api/turns/{ear.turn_id}/events", "params": params}
        request["url"] = self._urls[door] + request["url"]
        link = ear.connect(door, after=ear.seq)
        why: object = "the stream ended before the answer did"
        try:
            async with self._http.stream(**request, timeout=self._timeout) as response:
                if response.status_code == 200:
                    async for event in read_events(response.aiter_bytes()):
                        if event is not None:
                            ear.hear(event, link)
                else:
                    why = f"{response.status_code} {(await response.aread()).decode(errors='replace')}"
        except (httpx.TransportError, BadStream) as error:
            why = error
        if ear.open:
            ear.lose(link, why)
            fail(ear.asked, door, why)
