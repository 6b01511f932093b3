"""Bringing the lab up, from nothing to an answer on each of its nodes, and taking it away without a trace."""

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from cluster import cluster_file, serve_config
from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.lab import network, places, units
from cluster.lab.lab import Lab
from cluster.lab.machine import Machine
from cluster.lab.namespaces import processes
from cluster.lab.redis_roles import sentinel_sees
from cluster.node.first_deploy import FAILED
from cluster.packages import ensure, find
from cluster.progress import Progress
from cluster.redis_server import parse_version, program_version
from cluster.serve_api import ServeAway

_LOCK = "\0aurora-lab"
_OLDEST_REDIS = (7, 0)
_ANSWERS = "answers"
_CAP_SYS_ADMIN, _CAP_NET_ADMIN = 21, 12


def bring_up(progress: Progress, *, config: Path | None = None, keep: bool = False) -> None:
    """Start the lab, and wait until every node has answered a message; whatever ends it early, nothing is left, unless `keep`.

    Raises:
        LifecycleError: says what is wrong and what to do.
    """
    check_machine()
    with only_one():
        if network.existing():
            if any(processes(name) for name in network.existing()):
                raise LifecycleError("A lab is up on this machine: aurora-cli lab status; aurora-cli lab down.")
            with progress.step("Clean up after a lab that ended badly"):
                _remove_all()
        try:
            _start(progress, config)
        except BaseException:
            if keep:
                raise
            progress.say("Taking the lab away again …")
            _remove_all()
            raise


def take_down() -> bool:
    """Take the lab away with all that it left, also after a crash; tell whether there was anything."""
    check_machine()
    with only_one():
        there = bool(network.existing()) or places.HOME.exists()
        _remove_all()
        return there


def check_machine() -> None:
    """Make sure that a lab can be had here.

    Raises:
        LifecycleError: it cannot: says why.
    """
    if reason := unfit():
        raise LifecycleError(reason)


def unfit() -> str:
    """Return why this machine and this user cannot have a lab; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "The lab runs on Linux only, as it is made of its namespaces."
    if os.geteuid() != 0:
        return "The lab makes networks, so it needs root: sudo aurora-cli lab …"
    lines = Path("/proc/self/status").read_text().splitlines()
    capabilities = int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
    if not all(capabilities >> needed & 1 for needed in (_CAP_SYS_ADMIN, _CAP_NET_ADMIN)):
        return "The lab needs CAP_SYS_ADMIN and CAP_NET_ADMIN, which this root lacks: it may be in a container."
    return ""


@contextmanager
def only_one() -> Iterator[None]:
    """Let one command at a time change the lab; the kernel ends the claim with the process.

    Raises:
        LifecycleError: another one is at work.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(_LOCK)
        except OSError:
            raise LifecycleError("Another aurora-cli lab is at work on this machine: wait for it to end.") from None
        yield


def _start(progress: Progress, config: Path | None) -> None:
    for program in ("redis-server", "redis-sentinel"):
        if find(program) is None:
            with progress.step(f"Install {program}, which this machine lacks"):
                ensure(program)
    redis = ensure("redis-server")
    if parse_version(version := program_version(redis)) < _OLDEST_REDIS:
        raise LifecycleError(f"The lab needs redis-server 7.0 or newer (law 8), and {redis} is {version}: install a newer one.")
    cluster = _prepare()
    deploy = (config or cluster.serve_config).absolute()
    rendered = serve_config.render(deploy, host="0.0.0.0", port=cluster.port)
    with progress.step("A network of four nodes, and one for clients"):
        network.build({name: node.address for name, node in cluster.nodes.items()} | {places.CLIENTS: places.CLIENTS_ADDRESS})
        units.write(cluster, deploy=deploy)
    for name in cluster.nodes:
        Machine(name).power_on()
    with Lab() as lab:
        with progress.step(f"Redis {version}: a primary and its replicas"):
            _wait(lambda: _replicas_follow(lab), 30, "The replicas of the lab's Redis do not follow", lab)
        with progress.step("Ray's head"):
            _wait(lambda: lab.call(lambda: lab.serve.answers()), 90, "Ray's head does not answer", lab)
        with progress.step("Serve, which the head hands its configuration"):
            _wait(lambda: _serve_has_something(lab), 60, "The head has handed Serve nothing", lab)
        names = {application["name"] for application in rendered["applications"]}
        with progress.step(f"Applications {', '.join(sorted(names))}") as detail:
            lab.call(lambda: lab.serve.wait_until_running(names, timeout=180, on_change=detail))
        with progress.step("Sentinels that know each other"):
            _wait(lambda: _sentinels_agree(lab), 30, "The Sentinels do not agree", lab)
        with progress.step("An answer from every node") as detail:
            _wait_for_answers(lab, detail)


def _prepare() -> ClusterFile:
    places.HOME.mkdir(parents=True)
    token = places.HOME / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return cluster_file.load(places.CLUSTER)


def _remove_all() -> None:
    deadline = time.monotonic() + 20
    while left := [pid for name in network.existing() for pid in processes(name)]:
        for pid in left:
            if pid != os.getpid():
                _kill(pid)
        if time.monotonic() > deadline:
            raise LifecycleError(f"These processes of the lab do not die: {', '.join(map(str, left))}.")
        time.sleep(0.02)
    network.remove()
    units.remove()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def _replicas_follow(lab: Lab) -> bool:
    roles = lab.redis_roles()
    return sum(role.role == "replica" and role.in_sync for role in roles.values()) == len(roles) - 1


def _sentinels_agree(lab: Lab) -> bool:
    replicas = sum(node.redis == "replica" for node in lab.cluster.nodes.values())
    sentinels = [node.address for node in lab.cluster.nodes.values() if node.sentinel]
    seen = [lab.call(partial(sentinel_sees, lab.cluster, address)) for address in sentinels]
    return all(each == (lab.cluster.redis_primary.address, replicas, len(sentinels) - 1) for each in seen)


def _serve_has_something(lab: Lab) -> bool:
    with contextlib.suppress(ServeAway):
        if lab.call(lambda: lab.serve.details())["applications"]:
            return True
    log = places.folder(lab.cluster.head) / "log" / f"{units.RAY}.log"
    if said := [line for line in log.read_text().splitlines() if line.startswith(FAILED)]:
        raise LifecycleError(said[-1])
    return False


def _wait_for_answers(lab: Lab, detail: Callable[[str], None]) -> None:
    said: dict[str, str] = {}

    def all_answer() -> bool:
        answers = _ask_all(lab)
        said.update({node: _in_words(answer, node) for node, answer in answers.items()})
        detail(", ".join(f"{node}: {words}" for node, words in said.items()))
        return set(said.values()) == {_ANSWERS}

    try:
        _wait(all_answer, 90, "Not every node answers", lab)
    except LifecycleError as error:
        raise LifecycleError(f"{error} {'; '.join(f'{node}: {words}' for node, words in said.items())}") from error


def _in_words(answer: httpx.Response | Exception, node: str) -> str:
    if isinstance(answer, Exception):
        return str(answer) or type(answer).__name__
    if not answer.is_success:
        return f"{answer.status_code} {answer.text[:200]}"
    return _ANSWERS if (by := answer.json()["node"]) == node else f"answered by {by}"


def _ask_all(lab: Lab) -> dict[str, httpx.Response | Exception]:
    """Ask every node for an answer, and take its conversation away again."""

    def ask(node: str) -> httpx.Response | Exception:
        body = {"message": "Hello!", "personality": "robbie", "client_id": f"aurora-check-{node}"}
        try:
            with httpx.Client(base_url=lab.url(node), timeout=10, trust_env=False) as client:
                response = client.post("/api/chat", json=body)
                if response.is_success:
                    path = f"/api/conversations/{response.json()['conversation_id']}"
                    client.delete(path, params={"client_id": body["client_id"]})
                return response
        except httpx.TransportError as error:
            return error

    asked = {node: lab.start_call(partial(ask, node)) for node in lab.nodes}
    return {node: answer.result() for node, answer in asked.items()}


def _wait(ready: Callable[[], bool], timeout: float, failure: str, lab: Lab) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        if down := [name for name, state in lab.states().items() if state == "down"]:
            raise LifecycleError(f"{', '.join(down)} went down while starting: see aurora-cli lab up again, and the logs below.")
        if time.monotonic() > deadline:
            raise LifecycleError(f"{failure} after {timeout:.0f} s.")
        time.sleep(0.2)


__all__ = ["bring_up", "check_machine", "find", "only_one", "take_down", "unfit"]
