"""One client of the crowd, with one device or two: asks, listens to the end on each, asks again."""

from contextlib import AsyncExitStack
from typing import Protocol

import httpx

from tests.drills.clients.ear import Ear, now
from tests.drills.clients.library import LibraryClient, LibrarySocket
from tests.drills.clients.rest import RestClient
from tests.drills.clients.sse import SseClient
from tests.drills.clients.websocket import WebSocketDevice
from tests.drills.crowd import Client, Plan
from tests.drills.seen import Asked

_SECOND_DEVICE_S = 20.0
"""How much later than the first device the second one may hear the end."""


class Asker(Protocol):
    """The device that asks."""

    async def ask(self, ear: Ear) -> None:
        """Ask, and write down with `ear` what comes, up to the end or until it gives up."""
        ...


class Person:
    """Talks as one client of the plan. Use as `async with`."""

    def __init__(self, client: Client, plan: Plan, http: httpx.AsyncClient) -> None:
        """Talk as `client`; bare requests go over `http`."""
        self._client, self._plan, self._http = client, plan, http
        self._said = 0

    async def __aenter__(self) -> "Person":
        """Switch the devices on."""
        client, urls = self._client, self._plan.urls
        self._exit = AsyncExitStack()
        self._asker: Asker | None = None
        match client.kind.way:
            case "rest":
                pass
            case "sse":
                self._asker = SseClient(self._http, urls, client.doors, goes_on=client.kind.retries)
            case "library":
                self._asker = await self._exit.enter_async_context(LibraryClient(urls, client.doors, client.client_id))
            case "socket":
                self._asker = await self._exit.enter_async_context(LibrarySocket(urls, client.doors, client.client_id))
            case "ws":
                device = WebSocketDevice(urls, client.doors, client.client_id, asks=True)
                self._asker = await self._exit.enter_async_context(device)
        self._second: WebSocketDevice | None = None
        if client.second_doors:
            second = WebSocketDevice(urls, client.second_doors, client.client_id, asks=False)
            self._second = await self._exit.enter_async_context(second)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Switch them off."""
        await self._exit.aclose()

    def next(self) -> Asked:
        """Return the next message, for `ask`."""
        client = self._client
        message = client.message(self._said)
        self._said += 1
        return Asked(
            client_id=client.client_id,
            way=client.kind.way,
            retries=client.kind.retries,
            door=client.doors[0],
            personality=client.personality,
            message=message.text,
            words=message.words,
            words_per_second=message.words_per_second,
            divergent=self._plan.mode == "divergent",
            asked_at=now(),
        )

    async def ask(self, asked: Asked) -> None:
        """Ask, and return when every device has heard the end or has given up."""
        if self._asker is None:
            await RestClient(self._http, self._plan.urls).ask(asked)
            return
        first = Ear(asked)
        if self._second is None:
            await self._asker.ask(first)
            return
        second = Ear(asked, first=False)
        self._second.listen(second)
        await self._asker.ask(first)
        await self._second.heard(second, _SECOND_DEVICE_S)
