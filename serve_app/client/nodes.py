"""Which node to ask: the nearest that is well, by what was measured beside the requests.

Any node answers whatever any other does, so that a choice can be wrong only by milliseconds, until that node fails.
"""

import asyncio
import contextlib
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any

import httpx

from serve_app.client.seen import Seen

PROBE_S = 1.0
"""How long a node may take to say how it is; an idle one does in milliseconds."""
PROBES = 3
"""A node's latency is the median of so many probes."""
MEASURE_EVERY_S = 30.0
REST_S = 5.0
"""A node that failed is asked again after so long, and twice as long each time, up to `LONGEST_REST_S`."""
LONGEST_REST_S = 30.0
NEARER, NEARER_BY_S = 0.6, 0.005
"""How much nearer another node must be to move there: in proportion and in seconds. Chance alone must not move anybody."""


class Health(StrEnum):
    """How a node answers `GET /health`."""

    WELL = "well"
    DEGRADED = "degraded"
    """It lives, but cannot reach Redis, or has no ingress."""
    DRAINING = "draining"
    SILENT = "silent"
    REFUSED = "refused"


@dataclass
class Node:
    """What is known about one node."""

    url: str
    health: Health = Health.WELL
    latency_s: float = inf
    failures: int = 0
    rests_until: float = 0.0

    def rank(self, now: float) -> tuple[bool, bool, float, float]:
        """Return what sorts the better node first."""
        resting = self.rests_until > now
        return resting, self.health is not Health.WELL, self.rests_until if resting else 0.0, self.latency_s


class Nodes:
    """The nodes a client knows, and the one to ask now."""

    def __init__(self, urls: Sequence[str], http: httpx.AsyncClient, seen: Seen) -> None:
        """Begin with the first of `urls`.

        Raises:
            ValueError: no node, or one that is no http:// or https:// URL.
        """
        if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
            raise ValueError("Name the nodes as URLs, like http://127.0.0.1:8000.")
        self._http = http
        self._seen = seen
        self._given = list(dict.fromkeys(url.rstrip("/") for url in urls))
        self._nodes = {url: Node(url) for url in self._given}
        self._secure = all(url.startswith("https://") for url in self._given)
        self.current = self._given[0]
        self._stirred = asyncio.Event()

    @property
    def urls(self) -> list[str]:
        """All nodes that are known."""
        return list(self._nodes)

    def works(self, url: str) -> None:
        """Note that a node has answered."""
        if (node := self._nodes.get(url)) is not None:
            node.failures, node.rests_until = 0, 0.0

    def failed(self, url: str) -> None:
        """Note that a node has failed; if it is the current one, the best of the others takes its place."""
        if (node := self._nodes.get(url)) is not None:
            node.rests_until = _now() + min(LONGEST_REST_S, REST_S * 2**node.failures)
            node.failures += 1
        if url == self.current:
            self._go(self._best())
        self._stirred.set()

    async def keep_up(self) -> None:
        """Learn of nodes and measure them, for ever: now, whenever one fails, and now and then."""
        while True:
            await self._learn()
            await self.measure()
            ailing = any(node.health is not Health.WELL or node.failures for node in self._nodes.values())
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((REST_S if ailing else MEASURE_EVERY_S) * random.uniform(0.8, 1.2)):
                    await self._stirred.wait()

    async def measure(self) -> None:
        """Measure all nodes now, and go to another one if it is better by more than chance."""
        if len(self._nodes) > 1:
            await asyncio.gather(*(self._measure(node) for node in self._nodes.values()))
            best, here, now = self._best(), self._nodes[self.current], _now()
            nearer = best.latency_s < here.latency_s * NEARER and here.latency_s - best.latency_s > NEARER_BY_S
            if nearer or best.rank(now)[:2] < here.rank(now)[:2]:
                self._go(best)

    async def probe(self, url: str) -> Health:
        """Return how a node is, after `PROBE_S` seconds at the latest."""
        try:
            async with asyncio.timeout(PROBE_S):
                response = await self._http.get(f"{url}/health")
            if response.status_code == httpx.codes.OK:
                return Health.WELL if response.json()["status"] == "healthy" else Health.DEGRADED
            return Health.DRAINING if response.json()["error"]["code"] == "draining" else Health.DEGRADED
        except httpx.ConnectError:
            return Health.REFUSED
        except (TimeoutError, httpx.TransportError):
            return Health.SILENT
        except (ValueError, KeyError, TypeError):
            return Health.DEGRADED  # something answers for an ingress that is not there

    async def is_another_well(self, url: str) -> bool:
        """Say whether any other node is well, right now."""
        others = [other for other in self._nodes if other != url]
        return Health.WELL in await asyncio.gather(*(self.probe(other) for other in others))

    async def _learn(self) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                response = await self._http.get(f"{self.current}/")
            told = _urls(response.json()) if response.status_code == httpx.codes.OK else None
        except (TimeoutError, httpx.TransportError, ValueError):
            return
        if told is None:
            return
        if self._secure:  # who was given encrypted ways only is not led onto another
            told = [url for url in told if url.startswith("https://")]
        known = [*self._given, *told, self.current]
        self._nodes = {url: self._nodes.get(url) or Node(url) for url in known}

    async def _measure(self, node: Node) -> None:
        found = []
        for _ in range(PROBES):
            began = _now()
            node.health = await self.probe(node.url)
            if node.health in (Health.REFUSED, Health.SILENT):
                node.latency_s = inf
                return
            found.append(_now() - began)
        node.latency_s = statistics.median(found)
        if node.health is Health.WELL:
            self.works(node.url)

    def _best(self) -> Node:
        now = _now()
        return min(self._nodes.values(), key=lambda node: node.rank(now))  # among equals the first

    def _go(self, node: Node) -> None:
        if node.url != self.current:
            self.current = node.url
            self._seen.moves += 1


def _urls(info: Any) -> list[str] | None:
    """Return where the nodes are that `GET /` names; None if it is not Aurora that says so."""
    try:
        urls = [str(node["url"]).rstrip("/") for node in info["nodes"]]
    except (KeyError, TypeError):
        return None
    return [url for url in urls if url.startswith(("http://", "https://"))]


def _now() -> float:
    return asyncio.get_running_loop().time()
