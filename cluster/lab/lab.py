"""The lab as an object: the same faults as `aurora-cli lab`, without a start of Python for each."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

from cluster import cluster_file
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.failures import LifecycleError
from cluster.lab import network, places, units
from cluster.lab.machine import Machine, Replica, State
from cluster.lab.namespaces import Inside, processes
from cluster.lab.redis_roles import RedisRole, role
from cluster.lab.units import CONTROL, REDIS
from cluster.packages import ensure
from cluster.serve_api import ServeApi

T = TypeVar("T")

REPLICA = re.compile(r"^([^/@]+)/([^/@]+)@([^/@]+)$")
"""What names a replica: APP/DEPLOYMENT@NODE."""

_NEWCOMER = re.compile(r"^[a-z][a-z0-9]{0,9}$")  # an interface's name has 15 characters at most, and five of it are ours


class Lab:
    """The lab of this machine. Close it, or use it as a context manager; the lab itself goes on.

    Every method that changes something raises `LifecycleError` where that cannot be, and says why.
    """

    def __init__(self) -> None:
        """Find the lab that runs here.

        Raises:
            LifecycleError: none does.
        """
        if not network.path(places.CLIENTS).exists():
            raise LifecycleError("There is no lab on this machine: aurora-cli lab up.")
        self.cluster: ClusterFile = cluster_file.load(places.CLUSTER)
        self.addresses = {name: node.address for name, node in self.cluster.nodes.items()} | places.newcomers()
        """Where each node is."""
        self.machines = {name: Machine(name) for name in self.addresses}
        self._inside = Inside(places.CLIENTS)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads of this object."""
        self._inside.close()

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, the head first, those that joined without being in the cluster file last."""
        return list(self.machines)

    def url(self, node: str) -> str:
        """Return the chat's address on a node, as clients in the lab reach it."""
        return f"http://{self.addresses[self._machine(node).name]}:{self.cluster.port}"

    def call(self, do: Callable[[], T]) -> T:
        """Do something in the clients' network, in a thread of this process, and return its result."""
        return self._inside.call(do)

    def start_call(self, do: Callable[[], T]) -> "Future[T]":
        """Do something in the clients' network, in the background."""
        return self._inside.start(do)

    def command(self, where: str, command: Sequence[str]) -> list[str]:
        """Return `command` as one that runs on a node, or in the clients' network where `where` is "clients"."""
        if where == places.CLIENTS:
            return [ensure("nsenter"), f"--net={network.path(places.CLIENTS)}", *command]
        return self._machine(where).command(command)

    def exec(self, where: str, command: Sequence[str], *, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run a command on a node or in the clients' network, and return what it said."""
        return subprocess.run(self.command(where, command), capture_output=True, text=True, check=False, timeout=timeout)

    def kill(self, target: str, *, hold: bool = False) -> str:
        """Kill -9 a node with all that lives on it, `redis-primary`, `redis-control`, or a replica APP/DEPLOYMENT@NODE.

        A process that is not a whole node comes back after its delay; with `hold`, a Redis stays away until `start`.

        Returns:
            What was killed, in words.
        """
        if target == "redis-primary":
            node = self.redis_primary()
            self.machines[node].kill_unit(REDIS, hold=hold)
            return f"the Redis primary on {node}"
        if target == "redis-control":
            node = self.control_node
            self.machines[node].kill_unit(CONTROL, hold=hold)
            return f"Ray's control Redis on {node}"
        if match := REPLICA.match(target):
            application, deployment, node = match.groups()
            found = [r for r in self._machine(node).replicas() if (r.application, r.deployment) == (application, deployment)]
            if not found:
                raise LifecycleError(f"There is no replica of {application}/{deployment} on {node}.")
            for replica in found:
                with suppress(ProcessLookupError):
                    os.kill(replica.pid, signal.SIGKILL)
            return f"{application}/{deployment} on {node}"
        self._machine(target).kill()
        return f"{target}, and all that lived there"

    def start(self, target: str) -> None:
        """Start a node that is down, or let a Redis start that is held (`redis-control`, `redis@NODE`)."""
        if target == "redis-control":
            self.machines[self.control_node].release_unit(CONTROL)
        elif target.startswith("redis@"):
            self._machine(target.removeprefix("redis@")).release_unit(REDIS)
        else:
            self._machine(target).power_on()

    def join(self, name: str) -> None:
        """Let one more machine join, which no file names: it starts with `--join`, and may generate."""
        if not _NEWCOMER.match(name) or name in (*self.machines, places.CLIENTS, places.SWITCH):
            raise LifecycleError(f"A newcomer's name has up to 10 letters and digits, and is a new one; not {name!r}.")
        address = next((each for each in places.SPARE_ADDRESSES if each not in self.addresses.values()), None)
        if address is None:
            raise LifecycleError(f"The lab has no room for more than {len(self.addresses)} machines.")
        self.addresses[name] = address
        network.extend(name, {**self.addresses, places.CLIENTS: places.CLIENTS_ADDRESS})
        labels = {"aurora/inference": "true"}
        units.write_newcomer(self.cluster, name, NodeSpec.model_validate({"address": address, "labels": labels}))
        self.machines[name] = Machine(name)
        self.machines[name].power_on()

    def freeze(self, node: str) -> None:
        """Stop every process of a node where it stands: a hang, not a death. Undone by `heal`."""
        self._machine(node).freeze()

    def partition(self, node: str) -> None:
        """Let all packets to and from a node vanish. Undone by `heal`."""
        network.unplug(self._machine(node).name)

    def heal(self, node: str) -> None:
        """Undo `freeze` and `partition`."""
        network.plug(self._machine(node).name)
        self.machines[node].thaw()

    def states(self) -> dict[str, State]:
        """Return how each node is."""
        unplugged = network.unplugged()
        return {name: machine.state(unplugged) for name, machine in self.machines.items()}

    def replicas(self) -> list[Replica]:
        """Return the replicas that live on the nodes."""
        return [replica for machine in self.machines.values() for replica in machine.replicas()]

    def redis_roles(self) -> dict[str, RedisRole]:
        """Return what the chat's Redis on each node that has one says of itself."""
        asked = {name: self.start_call(partial(role, node.address)) for name, node in self.cluster.nodes.items() if node.redis}
        return {name: answer.result() for name, answer in asked.items()}

    def redis_primary(self) -> str:
        """Return the node of the Redis primary: of several that believe it, the one with most replicas.

        Raises:
            LifecycleError: there is none at the moment.
        """
        primaries = {name: said for name, said in self.redis_roles().items() if said.role == "primary"}
        if not primaries:
            raise LifecycleError("There is no Redis primary at the moment.")
        return max(primaries, key=lambda name: (primaries[name].replicas, primaries[name].offset))

    @property
    def control_node(self) -> str:
        """The node on which Ray's control Redis lives."""
        return next(name for name, node in self.cluster.nodes.items() if node.control_redis)

    @property
    def serve(self) -> ServeApi:
        """Serve's REST API on the head; its methods are to be called through `call`."""
        return ServeApi(self.cluster.dashboard_url, self.cluster.dashboard_headers)

    def alive(self) -> bool:
        """Whether any process of the lab runs."""
        return any(processes(name) for name in self.machines)

    def _machine(self, node: str) -> Machine:
        if node not in self.machines:
            raise LifecycleError(f"The lab has no node {node!r}; there are {', '.join(self.machines)}.")
        return self.machines[node]
