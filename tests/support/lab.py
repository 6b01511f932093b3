"""The lab as tests use it: its nodes as a client sees them, and what is left of it when it is gone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis

from cluster.lab import Lab, network, places
from cluster.lab.namespaces import enter
from tests.support.serving import stored_replies


class Nodes:
    """The nodes of the lab, as a client in its network sees them; the one called `door` is asked first."""

    def __init__(self, lab: Lab, door: str) -> None:
        self._lab = lab
        self.urls: Sequence[str] = sorted(map(lab.url, lab.nodes), key=lambda url: url != lab.url(door))

    def stored_replies(self, turn_id: str, conversation_id: str) -> list[dict[str, Any]]:
        primary = self._lab.addresses[self._lab.redis_primary()]
        with redis.Redis(host=primary, decode_responses=True, protocol=2, socket_timeout=10) as store:
            return stored_replies(store, turn_id, conversation_id)


@contextmanager
def client_network() -> Iterator[None]:
    """Have the sockets that this thread makes be in the network of the lab's clients."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(network.path(places.CLIENTS))
    try:
        yield
    finally:
        enter(Path(f"/proc/self/fd/{before}"))
        os.close(before)


def get(url: str, *, timeout: float = 10, **params: str) -> dict[str, Any]:
    """What a node answers, asked once."""
    response = httpx.get(url, params=params, timeout=timeout, trust_env=False)
    assert response.status_code == 200, response.text
    return dict(response.json())


def say(url: str, message: str, client_id: str, **more: object) -> dict[str, Any]:
    """Send a message to a node, once, and return its answer."""
    body = {"message": message, "client_id": client_id, "personality": "robbie", **more}
    response = httpx.post(f"{url}/api/chat", json=body, timeout=30, trust_env=False)
    assert response.status_code == 200, response.text
    return dict(response.json())


def served_by(url: str) -> str:
    """The name that answers at a node's door; empty where nobody does."""
    try:
        return str(httpx.get(url, timeout=5, trust_env=False).json().get("node", ""))
    except (httpx.TransportError, ValueError):
        return ""


def spaces() -> set[int]:
    """The network namespaces of the lab, as the kernel numbers them."""
    return {network.path(name).stat().st_ino for name in network.existing()}


def remains(of: set[int]) -> list[str]:
    """What is left of a lab whose namespaces were these."""
    found = [str(network.path(name)) for name in network.existing()]
    found += [str(places.HOME)] if places.HOME.exists() else []
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if places.PREFIX.rstrip("-") in line]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns" / "net").stat().st_ino in of:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has just ended
    return found
