"""The lab before and after a fault: into the same state every time, and when it is whole again."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import httpx

from cluster import redis_primary, serve_config
from cluster.failures import LifecycleError
from cluster.lab.lab import Lab
from cluster.lab.redis_roles import sentinel_sees
from cluster.progress import Progress
from cluster.terminal import out
from tests.drills.faults import ALL, Fault
from tests.drills.records import Before

PRIMARY = "star"
"""Where the Redis primary is to be when a fault comes."""
EVERYWHERE = ("Ingress", "PersonalityRouter")
_READY_S = 180.0
_POLL_S = 0.5


class NotReady(Exception):
    """The lab did not come into the state that was asked for."""


class Stage:
    """The lab as the drills use it."""

    def __init__(self, lab: Lab, say: Callable[[str], None]) -> None:
        """Use `lab`; `say` tells a person what is being waited for."""
        self.lab = lab
        self._say = say

    @property
    def urls(self) -> dict[str, str]:
        """The nodes' doors, by name."""
        return {node: self.lab.url(node) for node in self.lab.nodes}

    def prepare(self, fault: Fault) -> Before:
        """Bring the lab into the state in which `fault` begins, and return that state.

        Raises:
            NotReady: it does not come into it; names what is missing.
        """
        for node, state in self.lab.states().items():
            if state == "down":
                self.lab.start(node)
            elif state != "up":
                self.lab.heal(node)
        self.lab.start("redis-control")
        self._until(self._nodes_missing, "the nodes are back")
        self.generate(fault.generating)
        self._until(self._sentinels_missing, "the Sentinels agree")
        self.lab.call(lambda: redis_primary.move(self.lab.cluster, PRIMARY, Progress(out)))
        self._until(lambda: self.missing(fault.generating) or self._sentinels_missing(), "Redis is whole")
        return self._before()

    def generate(self, nodes: tuple[str, ...]) -> None:
        """Have exactly these nodes generate; return when the lab is whole.

        Raises:
            NotReady: it does not become so.
        """
        if self.missing(nodes):
            self._deploy(nodes)
        self._until(lambda: self.missing(nodes), "the lab is whole")

    def missing(self, generating: Sequence[str]) -> list[str]:
        """Say what is not as it should be: nodes, Redis, replicas, doors. Nothing, if the lab is whole."""
        if found := self._nodes_missing() or self._replicas_missing(generating):
            return found
        answers = {node: self.lab.start_call(partial(_healthy, url)) for node, url in self.urls.items()}
        return [f"{node} does not answer" for node, answer in answers.items() if not answer.result()]

    def wait_until_whole(self, generating: Sequence[str], timeout: float) -> None:
        """Return when nothing is missing.

        Raises:
            NotReady: not within `timeout` seconds.
        """
        self._until(lambda: self.missing(generating), "the lab is whole again", timeout)

    def _until(self, missing: Callable[[], list[str]], goal: str, timeout: float = _READY_S) -> None:
        deadline, said = time.monotonic() + timeout, ""
        while found := missing():
            if time.monotonic() > deadline:
                raise NotReady(f"Waited {timeout:.0f} s until {goal}: {'; '.join(found)}.")
            if found[0] != said:
                said = found[0]
                self._say(f"until {goal}: {said}")
            time.sleep(_POLL_S)

    def _nodes_missing(self) -> list[str]:
        """Say which nodes are not up, and whether Redis has not one primary with all the others in sync."""
        found = [f"{node} is {state}" for node, state in self.lab.states().items() if state != "up"]
        roles = self.lab.redis_roles()
        following = sum(role.role == "replica" and role.in_sync for role in roles.values())
        if following != len(roles) - 1 or sum(role.role == "primary" for role in roles.values()) != 1:
            found.append("Redis: " + ", ".join(f"{node} {role.role}" for node, role in roles.items()))
        return found

    def _replicas_missing(self, generating: Sequence[str]) -> list[str]:
        """Compare what Serve says and what really runs with one of everything per node."""
        try:
            applications = self.lab.call(lambda: self.lab.serve.details(timeout=5))["applications"]
        except LifecycleError as error:
            return [str(error)]
        wanted = {"Inference": len(generating), **dict.fromkeys(EVERYWHERE, len(self.lab.nodes))}
        found = []
        for application in applications.values():
            for name, deployment in application["deployments"].items():
                states = [replica["state"] for replica in deployment["replicas"]]
                if states != ["RUNNING"] * wanted[name]:
                    found.append(f"{name}: {states.count('RUNNING')} of {wanted[name]} run")
        living = {(replica.deployment, replica.node) for replica in self.lab.replicas()}
        needed = {("Inference", node) for node in generating} | {(name, node) for name in EVERYWHERE for node in self.lab.nodes}
        found += [f"{name} is missing on {node}" for name, node in sorted(needed - living)]
        return found + [f"{name} is too many on {node}" for name, node in sorted(living - needed)]

    def _deploy(self, generating: Sequence[str]) -> None:
        """Have exactly these nodes generate.

        Serve restarts no replica for another number of them, but chooses itself which one to stop: so those that are too many
        are killed first, and once it has noticed, what it gives up is their successors that have not started yet.
        """
        self._say(f"{', '.join(generating)} are to generate")
        cluster = self.lab.cluster
        for replica in self.lab.replicas():
            if replica.deployment == "Inference" and replica.node not in generating:
                self.lab.kill(f"{replica.application}/{replica.deployment}@{replica.node}")
                self._until(lambda node=replica.node: self._running_on(node), "Serve has noticed")  # type: ignore[misc]
        config = serve_config.render(cluster.serve_config, host="0.0.0.0", port=cluster.port)
        if tuple(generating) != ALL:
            config = limited(config, len(generating))
        self.lab.call(lambda: self.lab.serve.deploy(config))

    def _running_on(self, node: str) -> list[str]:
        """Say which replicas of inference run on a node, as Serve believes."""
        try:
            applications = self.lab.call(lambda: self.lab.serve.details(timeout=5))["applications"]
        except LifecycleError as error:
            return [str(error)]
        return [
            f"{replica['replica_id']} runs on {node}"
            for application in applications.values()
            for replica in application["deployments"].get("Inference", {"replicas": []})["replicas"]
            if replica["state"] == "RUNNING" and replica["node_ip"] == self.lab.addresses[node]
        ]

    def _sentinels_missing(self) -> list[str]:
        """Say which Sentinels do not know the primary with all its replicas, and each other."""
        cluster = self.lab.cluster
        sentinels = {name: node.address for name, node in cluster.nodes.items() if node.sentinel}
        wanted = (
            self.lab.addresses[self.lab.redis_primary()],
            sum(bool(node.redis) for node in cluster.nodes.values()) - 1,
            len(sentinels) - 1,
        )
        seen = {name: self.lab.call(partial(sentinel_sees, cluster, address)) for name, address in sentinels.items()}
        return [f"the Sentinel on {name} sees {found}" for name, found in seen.items() if found != wanted]

    def _before(self) -> Before:
        lab, roles = self.lab, self.lab.redis_roles()
        replicas: dict[str, list[str]] = {node: [] for node in lab.nodes}
        for replica in lab.replicas():
            replicas[replica.node].append(replica.deployment)
        return Before(
            head=lab.cluster.head,
            redis_primary=lab.redis_primary(),
            redis_replicas_in_sync=[node for node, role in roles.items() if role.role == "replica" and role.in_sync],
            control_redis=lab.control_node,
            replicas={node: sorted(names) for node, names in replicas.items()},
        )


def limited(config: dict[str, Any], replicas: int) -> dict[str, Any]:
    """Return the configuration with so many replicas of inference, which Serve adopts without restarting any."""
    limited = deepcopy(config)
    for application in limited["applications"]:
        for deployment in application["deployments"]:
            if deployment["name"] == "Inference":
                deployment["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
    return limited


def _healthy(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/health", timeout=2, trust_env=False)
        return answer.status_code == httpx.codes.OK and answer.json()["status"] == "healthy"
    except (httpx.TransportError, ValueError):
        return False
