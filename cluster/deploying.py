"""Waiting until what Serve was handed can answer: the chat must run, and of the pools one must be able.

A machine that is off, a model that is pulled, a GPU that is not there yet hold nobody up: what is late is named, with what it
says of itself, and is used as soon as it is there. Only where no pool can answer is there anything to wait for, for as long as
something is seen to move.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.failures import LifecycleError
from cluster.pool_status import PoolReplica
from cluster.serve_api import ServeAway, progress_of, reason_of

POOL = "deployments.app:pool"
GRACE_S = 20.0
"""What a pool that comes is waited for where another one is able: most are there by then, and nobody is told of them."""
QUIET_S = 180.0
"""How long nothing may move. Starting Python and a replica takes a slow machine a minute."""
AWAY_S = 60.0
"""The same where every pool has said that what it needs is away: time to switch it on."""
LOADING_S = 3_600.0
"""The same while an engine starts. It puts an end to that by itself; this is for one that does not."""
_LOOK_EVERY_S = 0.25


class Api(Protocol):
    """What is asked of Serve: see `ServeApi.details`."""

    def details(self) -> dict[str, Any]:
        """Return what Serve says of itself."""
        ...


@dataclass(frozen=True)
class Late:
    """A pool that was not waited for. `able`: it can answer, and is not all there; else it cannot yet. `note` says how it is."""

    pool: str
    able: bool
    note: str


@dataclass(frozen=True)
class _Pool:
    """A pool as Serve and its replicas show it.

    `able`: it can answer. `settled`: nothing about it will change by itself soon. `loading`: an engine of it is starting.
    """

    name: str
    able: bool
    settled: bool
    loading: bool
    whole: bool
    note: str


def wait(
    api: Api,
    config: Mapping[str, Any],
    replicas: Callable[[], Sequence[PoolReplica]],
    *,
    on_change: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[Late]:
    """Return the pools that are late, once all else in `config` runs and a pool is able; tells `on_change` how far it is.

    `replicas` tells those of all pools; empty while the chat does not say. `now` and `pause` are the clock, in seconds.

    Raises:
        LifecycleError: an application failed, or nothing moves any more; says which, why, and what to do.
    """
    described = {application.get("name", "default"): application for application in config["applications"]}
    pools = {name: application for name, application in described.items() if application.get("import_path") == POOL}
    if len(pools) == len(described):
        pools = {}  # nobody tells how their replicas are
    known: set[object] = set()
    told: Sequence[PoolReplica] = ()
    moved_at, able_since, limit_s = now(), None, QUIET_S
    while True:
        try:
            applications = api.details()["applications"]
        except ServeAway:
            if now() - moved_at >= limit_s:
                raise
            on_change("Ray's dashboard is slow to answer")
            pause(_LOOK_EVERY_S)
            continue
        _raise_mistakes(applications, described)
        if pools:
            told = replicas() or told  # a chat that does not answer for once has not lost its pools
        waiting = {name: applications.get(name, {}) for name in described if name not in pools}
        waiting = {name: application for name, application in waiting.items() if application.get("status") != "RUNNING"}
        seen = [_look(name, about, applications.get(name, {}), told) for name, about in pools.items()]
        if waiting or (pools and not any(pool.able for pool in seen)):
            able_since = None
        elif able_since is None:
            able_since = now()
        if able_since is not None and (all(pool.settled for pool in seen) or now() - able_since >= GRACE_S):
            return [Late(pool.name, pool.able, pool.note) for pool in seen if not (pool.able and pool.whole)]
        if news := set(_facts(applications, described, told)) - known:
            known |= news
            moved_at = now()
        on_change(", ".join(_details(waiting, seen)))
        limit_s = _limit(waiting, seen)
        if able_since is None and now() - moved_at >= limit_s:
            raise LifecycleError(_stuck(waiting, seen, limit_s))
        pause(_LOOK_EVERY_S)


def _raise_mistakes(applications: Mapping[str, Any], described: Iterable[str]) -> None:
    for name in described:
        application = applications.get(name, {})
        if application.get("status") == "DEPLOY_FAILED" and not _only_died(application):
            raise LifecycleError(f"Application {name!r} failed: {reason_of(application)}")


def _only_died(application: Mapping[str, Any]) -> bool:
    """Tell whether it counts as failed for a replica that died while others were replaced: Serve makes another one."""
    failed = [each for each in (application.get("deployments") or {}).values() if each["status"] == "DEPLOY_FAILED"]
    return bool(failed) and all(each.get("status_trigger") == "HEALTH_CHECK_FAILED" for each in failed)


def _look(name: str, described: Mapping[str, Any], application: Mapping[str, Any], told: Sequence[PoolReplica]) -> _Pool:
    deployments = (application.get("deployments") or {}).values()
    replicas = {each["replica_id"]: each for deployment in deployments for each in deployment["replicas"]}
    running = {replica for replica, each in replicas.items() if each["state"] == "RUNNING"}
    coming = {replica for replica, each in replicas.items() if each["state"] not in ("RUNNING", "STOPPING")}
    words = [word for word in told if word.pool == name and word.replica in running | coming]
    whole = application.get("status") == "RUNNING"
    unwanted = whole and not replicas and not any(deployment["target_num_replicas"] for deployment in deployments)
    if unwanted and not any("policy" in (each.get("autoscaling_config") or {}) for each in _deployments(described)):
        # Scaled to zero by its load: who asks starts it. (A policy of ours wants none where it has counted no nodes.)
        return _Pool(name, able=True, settled=True, loading=False, whole=True, note="")
    notes = list(dict.fromkeys(word.note for word in words if word.note and word.status != "ready"))
    if not notes:
        unplaced = coming and not running and not any(replicas[replica].get("node_id") for replica in coming)
        notes = [f"on no node yet; it asks for {_asks_for(described)}" if unwanted or unplaced else _how(application)]
    able = any(word.status == "ready" and word.replica in running for word in words)
    return _Pool(
        name,
        able=able,
        settled=whole and not unwanted and running <= {word.replica for word in words if word.status != "failing"},
        loading=any(word.replica in coming for word in words),
        whole=whole,
        note=progress_of(application) if able else "; ".join(notes),
    )


def _how(application: Mapping[str, Any]) -> str:
    if application.get("status") == "RUNNING":
        return "its replicas do not say how they are"
    broken = application.get("status") in ("UNHEALTHY", "DEPLOY_FAILED")
    return reason_of(application) if broken else f"starting, {progress_of(application)}"


def _deployments(described: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return described.get("deployments") or ()


def _asks_for(described: Mapping[str, Any]) -> str:
    wanted: list[str] = []
    for options in (each.get("ray_actor_options") or {} for each in _deployments(described)):
        if gpus := options.get("num_gpus"):
            wanted.append(f"{gpus:g} GPU")
        wanted += [f"{name} {amount:g}" for name, amount in (options.get("resources") or {}).items()]
        wanted += [f"{label}={value}" for label, value in (options.get("label_selector") or {}).items()]
    return ", ".join(wanted) or "nothing in particular"


def _facts(applications: Mapping[str, Any], names: Iterable[str], told: Sequence[PoolReplica]) -> Iterator[object]:
    """Yield what there is to see. What was not seen before is a move; the same failure over and over is none."""
    for name in names:
        application = applications.get(name, {})
        for deployment, facts in (application.get("deployments") or {}).items():
            states = tuple(sorted(replica["state"] for replica in facts["replicas"]))
            yield name, deployment, facts["target_num_replicas"], states
        yield name, application.get("status")
    for word in told:
        yield word.pool, word.status, word.note


def _details(waiting: Mapping[str, Any], pools: Sequence[_Pool]) -> Iterator[str]:
    late = {pool.name: pool.note for pool in pools if not (pool.able and pool.whole)}
    every = late | {name: progress_of(application) for name, application in waiting.items()}
    yield from (f"{name}: {how}" for name, how in sorted(every.items()))


def _limit(waiting: Mapping[str, Any], pools: Sequence[_Pool]) -> float:
    if waiting:
        return QUIET_S
    if any(pool.loading for pool in pools):
        return LOADING_S
    return AWAY_S if all(pool.settled for pool in pools) else QUIET_S


def _stuck(waiting: Mapping[str, Any], pools: Sequence[_Pool], seconds: float) -> str:
    if not waiting:
        notes = "; ".join(f"{pool.name}: {pool.note.rstrip('.')}" for pool in sorted(pools, key=lambda pool: pool.name))
        return (
            f"No pool can answer: {notes}. Give one of them what it needs and try again, or name one in the configuration that "
            "can answer now, like `scripted` in configs/local.yaml."
        )
    reasons = "; ".join(f"{name}: {progress_of(each)}, {reason_of(each)}" for name, each in sorted(waiting.items()))
    return f"Nothing has moved for {seconds:.0f} s: {reasons}"
