"""The background of every drill: a small request every 250 ms at every door, to see when users were answered.

Three in four ask for the node's health, the fourth is a real message with an answer of one word. Each is a connection and, for
messages, a client of its own, and none is tried again: what fails here failed for somebody.
"""

import asyncio
import itertools
from dataclasses import dataclass
from typing import Literal

import httpx

from tests.drills.clients.ear import now
from tests.drills.seen import Probe

EVERY_S = 0.25
IN_TIME_S = 2.0
"""Whoever waits longer for one word takes the door for closed."""
_CHAT_EVERY = 4


@dataclass(frozen=True)
class Door:
    """Where to knock."""

    name: str
    url: str


async def probe(http: httpx.AsyncClient, urls: dict[str, str], run: str, found: list[Probe]) -> None:
    """Knock at every door until cancelled; add to `found`. `run` makes the clients' names unlike those of other runs."""
    async with asyncio.TaskGroup() as group:
        for place, (name, url) in enumerate(urls.items()):
            group.create_task(_knock(http, Door(name, url), run, found, place / len(urls) * EVERY_S))


async def _knock(http: httpx.AsyncClient, door: Door, run: str, found: list[Probe], offset_s: float) -> None:
    begun = now() + offset_s
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            await asyncio.sleep(max(0.0, begun + number * EVERY_S - now()))
            kind: Literal["get", "chat"] = "get" if number % _CHAT_EVERY else "chat"
            group.create_task(_once(http, door, kind, f"probe_{run}_{door.name}_{number}", found))


def says_it_leaves(health: httpx.Response) -> bool:
    """Whether a node's health is that it leaves: an answer, for balancers, while whoever asks it for more is served as ever."""
    return health.status_code == 503 and '"draining"' in health.text


async def _once(http: httpx.AsyncClient, door: Door, kind: Literal["get", "chat"], client_id: str, found: list[Probe]) -> None:
    at, why = now(), ""
    try:
        async with asyncio.timeout(IN_TIME_S):
            if kind == "get":
                response = await http.get(f"{door.url}/health")
            else:
                body = {"message": "Hello", "client_id": client_id, "options": {"words": 1}}
                response = await http.post(f"{door.url}/api/chat", json=body)
        if response.status_code != 200 and not (kind == "get" and says_it_leaves(response)):
            why = f"{response.status_code} {response.text[:80]}"
    except (httpx.TransportError, TimeoutError) as error:
        why = type(error).__name__
    found.append(Probe(at, door.name, kind, None if why else now() - at, why))
