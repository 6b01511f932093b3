"""Programs that use Aurora's own client library, over server-sent events and over a WebSocket.

What they hear is what the library passes on: one connection, as far as they can tell.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import aclosing

from serve_app.client import AuroraClient, AuroraSocket, BrokenPromise, NobodyAnswers, RequestRefused
from tests.drills.clients.ear import GIVE_UP_S, Ear, fail, now
from tests.drills.seen import BALANCER, Asked

_GIVEN_UP = (RequestRefused, NobodyAnswers, BrokenPromise)


class _Library:
    """What both have in common: knowing which message a lost connection belongs to."""

    _asked: Asked | None = None

    def _lost(self, why: str) -> None:
        if self._asked is not None:
            fail(self._asked, "library", why)

    def _given_up(self, ear: Ear, link: int, error: Exception) -> None:
        ear.lose(link, error)
        fail(ear.asked, ear.asked.door, f"gave up: {error}")


class LibraryClient(_Library):
    """Iterates over `AuroraClient.ask`."""

    def __init__(self, urls: dict[str, str], doors: Sequence[str], client_id: str) -> None:
        """Talk as `client_id` with `doors`, whose URLs are in `urls`; through a balancer, with nobody else."""
        nodes, explore = [urls[door] for door in doors], BALANCER not in doors
        self._client = AuroraClient(nodes, client_id, patience_s=GIVE_UP_S, explore=explore, on_lost=self._lost)

    async def __aenter__(self) -> "LibraryClient":
        """Be ready."""
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.__aexit__()

    async def ask(self, ear: Ear) -> None:
        """Ask, and listen to the end."""
        asked = self._asked = ear.asked
        link = ear.connect(asked.door)
        try:
            async with aclosing(self._client.ask(asked.message, personality=asked.personality, options=asked.options)) as events:
                async for event in events:
                    ear.hear(event, link)
        except _GIVEN_UP as error:
            self._given_up(ear, link, error)


class LibrarySocket(_Library):
    """Asks over `AuroraSocket`, and reads what comes over it."""

    def __init__(self, urls: dict[str, str], doors: Sequence[str], client_id: str) -> None:
        """As for `LibraryClient`."""
        nodes, explore = [urls[door] for door in doors], BALANCER not in doors
        self._socket = AuroraSocket(nodes, client_id, patience_s=GIVE_UP_S, explore=explore, on_lost=self._lost)
        self._ear: Ear | None = None
        self._link = 0

    async def __aenter__(self) -> "LibrarySocket":
        """Begin to connect and to read."""
        await self._socket.__aenter__()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.__aexit__()

    async def ask(self, ear: Ear) -> None:
        """Ask, and listen to the end."""
        asked = self._asked = ear.asked
        self._ear, self._link = ear, ear.connect(asked.door)
        try:
            await self._socket.ask(asked.message, personality=asked.personality, options=asked.options)
        except _GIVEN_UP as error:
            self._given_up(ear, self._link, error)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, ear.deadline() - now())):
                    await ear.done.wait()
        ear.give_up()

    async def _read(self) -> None:
        try:
            async with aclosing(self._socket.events()) as events:
                async for event in events:
                    ear = self._ear
                    if ear is not None and event.turn_id == (ear.turn_id or event.turn_id):
                        ear.hear(event, self._link)
        except _GIVEN_UP as error:
            if self._ear is not None:
                self._given_up(self._ear, self._link, error)
                self._ear.give_up()
