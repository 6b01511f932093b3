"""The nodes that a balancer spreads its users over: as the cluster file names them, or as they are right now."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from cluster import cluster_file
from cluster.failures import LifecycleError

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Backend:
    """A node's :8000. A `draining` one finishes what it has and gets nothing new."""

    name: str
    host: str
    port: int
    draining: bool = False

    @property
    def address(self) -> str:
        """HOST:PORT, as balancers write it."""
        return f"{self.host}:{self.port}"


class _Node(BaseModel):
    node: str
    url: str
    status: str = "serving"


class _Info(BaseModel):
    nodes: list[_Node]


def from_file(path: Path) -> list[Backend]:
    """Return the nodes of a cluster file.

    Raises:
        LifecycleError: it cannot be read, or is wrong.
    """
    cluster = cluster_file.load(path)
    return [Backend(name, node.address, cluster.port) for name, node in cluster.nodes.items()]


def from_node(url: str) -> list[Backend]:
    """Return the nodes that serve now, as the node at `url` names them.

    Raises:
        LifecycleError: nobody answers there, or it names none.
    """
    try:
        response = httpx.get(f"{url.rstrip('/')}/", timeout=TIMEOUT_S, trust_env=False)
        nodes = _Info.model_validate(response.raise_for_status().json()).nodes
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LifecycleError(f"Nobody answers at {url} ({error}): name a node that is up, like http://10.0.0.1:8000.") from error
    except (ValidationError, ValueError) as error:
        raise LifecycleError(f"What answers at {url} is not Aurora: name a node, like http://10.0.0.1:8000.") from error
    if not nodes:
        raise LifecycleError(f"{url} is no node of a cluster (it has no AURORA_NODE_URL): use --cluster FILE.")
    return [_backend(node) for node in nodes]


def _backend(node: _Node) -> Backend:
    place = urlsplit(node.url)
    if place.scheme != "http" or place.hostname is None:
        raise LifecycleError(f"{node.node} is at {node.url}, not at a http:// address: nodes speak plain HTTP to a balancer.")
    return Backend(node.node, _bracketed(place.hostname), place.port or 80, draining=node.status == "draining")


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host
