"""What the nodes of a cluster must have alike: told by the head, asked for by those that join.

It lies in Ray's control Redis, as that is there before Ray is, and known to every node.
"""

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.node.environment import shared
from cluster.settings import PROJECT_ROOT

_PATIENCE_S = 120.0
_CODE = ("serve_app", "deployments", "cluster")
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_WHERE_SET = "Variables are set where `aurora-cli node start` is started (shell, unit, .env): set them there as on the head."
_WITHOUT_HAPROXY = f"{_HAPROXY} is 0 where no HAProxy is found: name one there in RAY_SERVE_HAPROXY_BINARY_PATH."

T = TypeVar("T")
WaitOn: TypeAlias = Callable[[], bool]
"""Asked every two minutes while something is waited for: whether to wait on."""


def _no_longer() -> bool:
    return False


def settings(cluster: ClusterFile) -> dict[str, str]:
    """Return what this node would have in common with the others: settings and versions, by the names that a person knows."""
    return cluster.agreed() | {
        "the version of Python": platform.python_version(),
        "the version of Ray": importlib.metadata.version("ray"),
        "the version of Aurora": importlib.metadata.version("aurora"),
        "the code of Aurora": code_digest(),
    }


def code_digest(project: Path = PROJECT_ROOT) -> str:
    """Return twelve hexadecimal digits that change with whatever runs on a node: two checkouts may have one version.

    Other files do not count: an operator may have put addresses of his own into them.
    """
    digest = hashlib.sha256()
    for file in sorted(file for folder in _CODE for file in (project / folder).rglob("*")):
        if file.suffix in (".py", ".lua", ".sh"):
            digest.update(f"{file.relative_to(project)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def publish(cluster: ClusterFile, env: Mapping[str, str], *, say: Callable[[str], None], wait_on: WaitOn = _no_longer) -> None:
    """Say, as the head whose Ray gets `env`, what the nodes must have alike; waits for the control Redis.

    Raises:
        LifecycleError: no Redis answers there.
    """
    with control_redis(cluster, say=say, wait_on=wait_on) as client:
        pipeline = client.pipeline(transaction=True)
        for name, said in ((key(cluster), settings(cluster)), (_variables_key(cluster), shared(env))):
            pipeline.delete(name)
            pipeline.hset(name, mapping=said)
        pipeline.execute()


def check(cluster: ClusterFile, env: Mapping[str, str], *, say: Callable[[str], None], wait_on: WaitOn = _no_longer) -> None:
    """Compare this node, whose Ray gets `env`, with what the head said; waits for the control Redis and for the first head.

    Raises:
        LifecycleError: something differs: says what, here and there; or nobody answers.
    """
    with control_redis(cluster, say=say, wait_on=wait_on) as client:

        def what_the_head_said() -> tuple[dict[str, str], dict[str, str]] | None:
            pipeline = client.pipeline(transaction=True)
            pipeline.hgetall(key(cluster))
            pipeline.hgetall(_variables_key(cluster))
            said, variables = pipeline.execute()
            return (said, variables) if said else None

        head, variables = patiently(
            what_the_head_said,
            waiting=f"Waiting for the head, {cluster.head} at {cluster.head_address} …",
            failure=f"The head, {cluster.head} at {cluster.head_address}, has never started: run aurora-cli node start there.",
            say=say,
            wait_on=wait_on,
        )
    differing, advice = _differing(settings(cluster), head), ["Make them alike."]
    # An older head has said nothing of variables; that its code is another is said already.
    if variables and (others := _differing(shared(env), variables)):
        differing += others
        advice.append(_WHERE_SET)
        if any(each.startswith(_HAPROXY) for each in others):
            advice.append(_WITHOUT_HAPROXY)
    if differing:
        raise LifecycleError(f"This node differs from its head, {cluster.head}: {'; '.join(differing)}. {' '.join(advice)}")


def _differing(ours: Mapping[str, str], head: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {ours.get(name, 'nothing')} here, {head.get(name, 'nothing')} there"
        for name in sorted(ours.keys() | head.keys())
        if ours.get(name) != head.get(name)
    ]


def key(cluster: ClusterFile) -> str:
    """Return the key in the control Redis of what the head said; others of the same cluster begin with it."""
    return f"aurora:cluster:{cluster.name}"


def _variables_key(cluster: ClusterFile) -> str:
    # Apart from the rest, all of which an older node compares, whatever it is.
    return f"{key(cluster)}:variables"


def control_redis(cluster: ClusterFile, *, say: Callable[[str], None], wait_on: WaitOn = _no_longer) -> "redis.Redis":
    """Return a client of Ray's control Redis, which has answered; to be closed.

    Raises:
        LifecycleError: it does not answer for two minutes, and `wait_on`, asked again every two, says not to.
    """
    host, _, port = cluster.control_redis.rpartition(":")
    options: dict[str, Any] = {"socket_timeout": 2, "socket_connect_timeout": 2, "decode_responses": True}
    where = f"Ray's control Redis at {cluster.control_redis}"
    # It is asked five times a second; the client's own retries take seconds, in which it is back and nobody knows.
    with redis.Redis(host=host, port=int(port), retry=Retry(NoBackoff(), 0), **options) as asking:
        patiently(
            asking.ping,
            waiting=f"Waiting for {where} …",
            failure=f"{where} does not answer: start it, or correct ray.redis in the cluster file and start this node again.",
            say=say,
            wait_on=wait_on,
        )
    return redis.Redis(host=host, port=int(port), **options)


def patiently(ask: Callable[[], T | None], *, waiting: str, failure: str, say: Callable[[str], None], wait_on: WaitOn) -> T:
    """Ask until there is an answer, and return it; every two minutes say what is missing, or give up unless told to `wait_on`.

    Raises:
        LifecycleError: it gives up; says `failure`.
    """
    due, said = time.monotonic(), False
    while True:
        try:
            if answer := ask():
                return answer
        except redis.AuthenticationError as error:
            raise LifecycleError(f"{failure} ({error})") from error
        except redis.RedisError:
            pass
        if time.monotonic() >= due:
            if said and not wait_on():
                raise LifecycleError(failure)
            say(failure if said else waiting)
            due, said = due + _PATIENCE_S, True
        time.sleep(0.2)
