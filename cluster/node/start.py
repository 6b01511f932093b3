"""Starting this machine as a node: the checks, then Ray in the foreground, for a service manager to watch."""

import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psutil

from cluster import ollama
from cluster.cluster_file import NAME, ClusterFile, NodeSpec
from cluster.down import keep_logs
from cluster.failures import LifecycleError
from cluster.node import agreement, first_deploy
from cluster.node.caretaker import Caretaker
from cluster.node.claim import claim
from cluster.node.drain import lift
from cluster.node.environment import environment, start_options
from cluster.processes import MARK, belonging_to, end, mark_of
from cluster.ray_environment import prepare_folder
from cluster.settings import PROJECT_ROOT, Settings
from cluster.terminal import signals_as_interrupt


def this_node(cluster: ClusterFile, name: str | None) -> tuple[str, NodeSpec]:
    """Return which of the cluster's nodes this machine is: the one named, else the one whose address is of this machine.

    Raises:
        LifecycleError: none is.
    """
    if name is not None:
        if name not in cluster.nodes:
            raise LifecycleError(f"There is no node {name!r} in the cluster file; there are: {', '.join(cluster.nodes)}.")
        return name, cluster.nodes[name]
    if (found := _found(cluster)) is None:
        raise LifecycleError("No node of the cluster file has an address of this machine: correct the file, or say --name.")
    return found, cluster.nodes[found]


def is_named(cluster: ClusterFile, name: str | None) -> bool:
    """Tell whether the cluster file names this machine, by its name if one is given, else by its address."""
    return name in cluster.nodes if name is not None else _found(cluster) is not None


def _found(cluster: ClusterFile) -> str | None:
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return next((name for name, node in cluster.nodes.items() if node.address in own), None)


def newcomer(cluster: ClusterFile, name: str | None, labels: dict[str, str]) -> tuple[str, NodeSpec]:
    """Return this machine as a node that the cluster file does not name: it may join all the same."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((cluster.head_address, cluster.ray.gcs_port))  # sends nothing; asks the routing table
        except OSError as error:
            raise LifecycleError(f"No way leads to the head at {cluster.head_address}: {error.strerror}.") from error
        address = str(probe.getsockname()[0])
    name = name or socket.gethostname()
    if not re.fullmatch(NAME, name):
        raise LifecycleError(f"A node's name is made of letters, digits, dots and dashes; {name!r} is not: give another, --name.")
    return name, NodeSpec.model_validate({"address": address, "labels": labels})


def with_ollama(node: NodeSpec, url: str, *, say: Callable[[str], None]) -> NodeSpec:
    """Return `node` with the label of those that have an Ollama, where one answers at `url`; what the file says stands."""
    if ollama.LABEL in node.labels:
        return node
    server = ollama.find(url)
    if server is None:
        say(f"No Ollama answers at {url}: pools of the engine ollama get no replica here.")
        return node
    say(f"Ollama {server.version} answers at {server.url}: pools of the engine ollama get a replica here.")
    return node.model_copy(update={"labels": {**node.labels, ollama.LABEL: "true"}})


def run(
    settings: Settings,
    cluster: ClusterFile,
    name: str,
    node: NodeSpec,
    *,
    config: Path,
    deploy: Path,
    is_head: bool,
    autoscaling: Path | None = None,
    say: Callable[[str], None],
) -> NoReturn:
    """Become Ray on this node: this process turns into it, and ends when it ends.

    `config` is the file of `cluster`; a head has Serve run `deploy`, where nothing was ever deployed. `autoscaling` is the file
    with which Ray's cluster launcher lets a head start the other nodes.

    Raises:
        LifecycleError: something is missing, or differs from the head: says what.
    """
    say(f"Node {name} ({node.address}) of cluster {cluster.name}, {'its head' if is_head else f'head {cluster.head}'}.")
    token = cluster.token  # says what is wrong with it before anything is touched
    if token and cluster.ray.token_file and cluster.ray.token_file.stat().st_mode & 0o077:
        raise LifecycleError(f"{cluster.ray.token_file} can be read by others: chmod 600 it.")
    claim(settings)
    folder = settings.ray_folder
    mark = {MARK: mark_of(settings.home, secrets.token_hex(6))}
    caretaker = Caretaker(cluster, name, node, settings=settings)
    env = environment(cluster, name, node, folder=folder, mark=mark, is_head=is_head) | caretaker.environment
    # Not for long: their Ray is gone, what they had in hand is taken over, and until they have ended the port is closed.
    if end(lambda: belonging_to(settings.home), patience=1):
        raise LifecycleError("What an earlier start left behind does not end: restart the machine.")
    with _until_ray_serves(caretaker, env, say=say) as wait_on:
        if is_head:
            agreement.publish(cluster, env, say=say, wait_on=wait_on)
        else:
            agreement.check(cluster, env, say=say, wait_on=wait_on)
            _wait_for_head(cluster, say=say, wait_on=wait_on)
            agreement.check(cluster, env, say=say, wait_on=wait_on)  # it may be a new one: with it came what is now agreed
        lift(cluster.redis_url, name, say=say)
        node = with_ollama(node, settings.ollama_url, say=say)
        keep_logs(settings)
        prepare_folder(folder)
        ray = str(Path(sys.executable).parent / "ray")
        say("Starting Ray …")
        os.chdir(PROJECT_ROOT)
        if is_head and first_deploy.is_due(cluster, say=say):
            first_deploy.start(config, deploy, env=env, folder=PROJECT_ROOT)
        options = start_options(cluster, name, node, folder=folder, is_head=is_head)
        if autoscaling is not None:
            options.append(f"--autoscaling-config={autoscaling}")
        os.execve(ray, [ray, "start", *options], env)


@contextmanager
def _until_ray_serves(caretaker: Caretaker, env: dict[str, str], *, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Have the node's port answered; give what tells whether to go on waiting for what Ray needs.

    As long as it takes where the port is answered meanwhile: to end and be started again would close it.
    """
    with signals_as_interrupt():
        try:
            caretaker.start(env, say=say)
            yield lambda: caretaker.answers
        except BaseException:
            caretaker.end()
            raise


def _wait_for_head(cluster: ClusterFile, *, say: Callable[[str], None], wait_on: Callable[[], bool]) -> None:
    where = f"{cluster.head_address}:{cluster.ray.gcs_port}"

    def reached() -> bool:
        try:
            socket.create_connection((cluster.head_address, cluster.ray.gcs_port), timeout=1).close()
        except OSError:
            return False
        return True

    agreement.patiently(
        reached,
        waiting=f"Waiting for Ray's head at {where} …",
        failure=f"The head does not answer at {where}: is {cluster.head} up?",
        say=say,
        wait_on=wait_on,
    )
