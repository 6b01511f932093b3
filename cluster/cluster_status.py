"""How a cluster is: its nodes and their :8000, the replicas on each, Redis, the turns. Looks, and changes nothing.

Everything is asked at once and with short timeouts, so that nodes which are down or silent cost seconds, not minutes.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import redis
from pydantic import BaseModel

from cluster import redis_status
from cluster.cluster_file import REDIS_PORT, ClusterFile
from cluster.failures import LifecycleError
from cluster.pool_status import PoolReplica, pools_at
from cluster.redis_status import ChatRedis
from cluster.serve_api import ServeApi, running_replicas

_ANSWER_S = 2.0


class NodeStatus(BaseModel):
    """One node, as its own :8000 and Serve show it."""

    name: str
    url: str
    state: str
    """`running`, `degraded` (Redis is away), `draining`, `failing` or `down`."""
    latency_ms: float | None = None
    note: str = ""
    head: bool = False
    replicas: dict[str, int] = {}
    """Running replicas by application/deployment; empty also while the head is away."""


class DeploymentStatus(BaseModel):
    """One deployment over all nodes."""

    name: str
    state: str
    running: int
    wanted: int
    others: list[str] = []
    """States of the replicas that do not run."""


class ClusterStatus(BaseModel):
    """The cluster at one moment."""

    cluster: str
    nodes: list[NodeStatus]
    head: str
    """`running`, or why Ray's head does not answer; the chat goes on without it."""
    deployments: list[DeploymentStatus]
    pools: list[PoolReplica] = []
    redis: ChatRedis
    control_redis: str
    """`running` or `down`: the Redis of Ray's head."""

    @property
    def serves(self) -> bool:
        """Whether anybody gets an answer: a node serves, and Redis has a primary."""
        return any(node.state in ("running", "draining") for node in self.nodes) and self.redis.live_turns is not None


def look(cluster: ClusterFile) -> ClusterStatus:
    """Return how the cluster is now.

    Raises:
        LifecycleError: the cluster file names a Redis that cannot be asked.
    """
    try:
        place = redis_status.place_of(cluster.redis_url)
    except ValueError as error:
        raise LifecycleError(f"redis.url in the cluster file: {error}.") from error
    servers = [f"{node.address}:{REDIS_PORT}" for node in cluster.nodes.values() if node.redis] if not cluster.redis.url else []
    with ThreadPoolExecutor(max_workers=16) as pool, ThreadPoolExecutor(max_workers=1) as apart:
        details = pool.submit(_details, cluster)
        control = pool.submit(_answers, cluster.control_redis)
        # Waits for others of its own kind: in a pool that they cannot fill up.
        chat_redis = apart.submit(redis_status.look, place, servers, pool)
        nodes = list(pool.map(lambda name: _node(name, cluster.url(name)), cluster.nodes))
        registered = {str(each["node"]): each for _, about in nodes for each in about.get("nodes", []) if each.get("url")}
        strangers = [name for name in registered if name not in cluster.nodes]
        nodes += pool.map(lambda name: _node(name, str(registered[name]["url"])), strangers)
        serve, head = details.result()
        found = [node for node, _ in nodes]
        _place_replicas(found, serve)
        for node, about in nodes:
            node.head = node.name == cluster.head
            # For one that leaves, another node's ingress answers. What its own says is newer than any record.
            answered_for = node.state != "down" and about.get("node") != node.name
            if answered_for and registered.get(node.name, {}).get("status") == "draining":
                node.state, node.note = "draining", "is leaving"
        return ClusterStatus(
            cluster=cluster.name,
            nodes=found,
            head=head,
            deployments=_deployments(serve),
            pools=next(filter(None, pool.map(pools_at, (node.url for node in found if node.state == "running"))), []),
            redis=chat_redis.result(),
            control_redis="running" if control.result() else "down",
        )


def _node(name: str, url: str) -> tuple[NodeStatus, dict[str, Any]]:
    """Return how a node is, and what its port says of itself and of all nodes."""
    node = NodeStatus(name=name, url=url, state="down", note="does not answer")
    try:
        with httpx.Client(base_url=url, timeout=_ANSWER_S, trust_env=False) as client:
            begun = time.perf_counter()
            health = client.get("/health")
            node.latency_ms = round((time.perf_counter() - begun) * 1000, 1)
            about = client.get("/").json()
            said = health.json()
    except (httpx.HTTPError, ValueError):
        return node, {}
    node.state, node.note = _state(health.status_code, said)
    if node.state != "failing" and about.get("node") != name:
        node.note = f"answered by {about.get('node')}"  # its own ingress is not there: another node's stands in
    return node, about


def _state(code: int, said: dict[str, Any]) -> tuple[str, str]:
    if code == httpx.codes.OK:
        return ("running", "") if said.get("redis") == "ok" else ("degraded", "Redis is away")
    if said.get("error", {}).get("code") == "draining":
        return "draining", "is leaving"
    return "failing", f"answers with {code}"


def _details(cluster: ClusterFile) -> tuple[dict[str, Any], str]:
    try:
        return ServeApi(cluster.dashboard_url, cluster.dashboard_headers).details(timeout=_ANSWER_S * 2), "running"
    except LifecycleError as error:
        return {}, str(error)


def _place_replicas(nodes: list[NodeStatus], serve: dict[str, Any]) -> None:
    by_address = {urlsplit(node.url).hostname: node for node in nodes}
    for name, deployment in _each_deployment(serve):
        counts = Counter(replica.get("node_ip") for replica in deployment["replicas"] if replica["state"] == "RUNNING")
        for address, count in counts.items():
            if address in by_address:
                by_address[address].replicas[name] = count


def _deployments(serve: dict[str, Any]) -> list[DeploymentStatus]:
    found = []
    for name, deployment in _each_deployment(serve):
        running, wanted = running_replicas(deployment)
        others = [replica["state"].lower() for replica in deployment["replicas"] if replica["state"] != "RUNNING"]
        state = deployment["status"].lower()
        found.append(DeploymentStatus(name=name, state=state, running=running, wanted=wanted, others=others))
    return found


def _each_deployment(serve: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{application}/{name}", deployment)
        for application, facts in sorted(serve.get("applications", {}).items())
        for name, deployment in (facts.get("deployments") or {}).items()
    ]


def _answers(address: str) -> bool:
    try:
        with redis_status.connect(address) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return True  # it is there, and its password is Ray's
    except redis.RedisError:
        return False
