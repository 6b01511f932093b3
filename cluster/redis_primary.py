"""The primary of the chat's Redis as its operator moves it: which replica can take over, and the move itself.

How it is done without losing anything is in `redis_handover.py`.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import redis

from cluster import redis_status
from cluster.cluster_file import REDIS_PORT, ClusterFile
from cluster.failures import LifecycleError
from cluster.progress import Progress
from cluster.redis_handover import Handover, usual_priority
from cluster.redis_status import ChatRedis, Place

_MAX_LAG_S = 3
"""A replica that has confirmed nothing for longer does not keep up (`min-replicas-max-lag`)."""


def move(cluster: ClusterFile, to: str | None, progress: Progress) -> None:
    """Move the primary to the node `to`, else to the replica that has most; returns when Redis is whole again.

    Raises:
        LifecycleError: it cannot be moved now, or was not to the end: says why, and what is so now.
    """
    names = _names(cluster)
    place = redis_status.place_of(cluster.redis_url)
    target = _address(names, to) if to else ""
    handover = plan(place, to=target, name=lambda address: names.get(address, address))
    if handover is None:
        progress.say(f"The primary of the chat's Redis is on {to} already.")
        return
    old, new = handover.name(handover.old), handover.name(handover.new)
    with progress.step(f"The primary of the chat's Redis moves from {old} to {new}") as tell:
        waited_s = handover.carry_out(tell)
    progress.say(f"  Nothing was lost; writes waited for {waited_s:.1f} s at most.")


def move_away(cluster: ClusterFile, node: str, progress: Progress) -> None:
    """Move the primary to another node if it is on `node`, where Sentinels can tell who is it then.

    Raises:
        LifecycleError: as `move`.
    """
    place = redis_status.place_of(cluster.redis_url)
    spec = cluster.nodes.get(node)
    if spec is None or not spec.redis or where(place) != f"{spec.address}:{REDIS_PORT}":
        return
    if not place.sentinels:
        progress.say(f"  {node} has the only primary of the chat's Redis, and there are no Sentinels: it stays there.")
        return
    move(cluster, None, progress)


def where(place: Place) -> str:
    """Return HOST:PORT of the primary; empty where nobody knows."""
    return _look(place).primary


def plan(place: Place, *, to: str = "", name: Callable[[str], str] = str) -> Handover | None:
    """Return the handover to the replica at `to` (HOST:PORT), else to the one that has most; None where `to` is the primary.

    Changes nothing but what a handover that was cut off has left. `name` says an address in a person's words.

    Raises:
        LifecycleError: there can be none now; says why.
    """
    if not place.sentinels:
        raise LifecycleError("The chat's Redis has no Sentinels, and without them nobody would find its new primary: it stays.")
    seen = _look(place)
    sentinels = tuple(sentinel.address for sentinel in seen.sentinels if sentinel.primary)
    if not sentinels:
        raise LifecycleError(f"No Sentinel answers that knows {place.master!r} ({', '.join(place.sentinels)}): start them first.")
    named = {sentinel.primary for sentinel in seen.sentinels if sentinel.primary}
    primaries = {server.address for server in seen.servers if server.state == "primary"}
    if not named == primaries == {seen.primary}:
        said = ", ".join(f"{name(server.address)} {server.state}" for server in seen.servers)
        raise LifecycleError(
            f"Sentinels and servers do not agree on the primary ({said}): wait until aurora-cli status shows one."
        )
    if to == seen.primary:
        return None
    states = _replicas(place, seen)
    fit = [address for address, why in states.items() if not why]
    if to not in fit and (to or not fit):
        who = f"The Redis on {name(to)} cannot" if to else "No replica of the chat's Redis can"
        all_said = "; ".join(f"{name(address)} {why or 'can'}" for address, why in states.items()) or "there are no replicas"
        raise LifecycleError(f"{who} take over now ({all_said}): nothing was moved, no write waited.")
    return Handover(place, seen.primary, to or fit[0], sentinels, name)


def _look(place: Place) -> ChatRedis:
    with ThreadPoolExecutor(8) as pool:
        return redis_status.look(place, (), pool)


def _replicas(place: Place, seen: ChatRedis) -> dict[str, str]:
    """Return the replicas that the primary has, the one with most first, and why each cannot take over, if so."""
    try:
        with redis_status.client_of(place, seen.primary) as client:
            said = client.info("replication")
        priorities = {each.address: usual_priority(place, each.address) for each in seen.servers if each.state != "down"}
    except redis.RedisError as error:
        raise LifecycleError(f"A server of the chat's Redis does not say how it is ({error}): try again.") from error
    replicas = [said[f"slave{number}"] for number in range(said["connected_slaves"])]
    replicas.sort(key=lambda each: -int(each["offset"]))
    return {(at := f"{each['ip']}:{each['port']}"): _why_not(each, priorities.get(at)) for each in replicas}


def _why_not(replica: Mapping[str, str | int], priority: int | None) -> str:
    if replica["state"] != "online":
        return "is still being copied to"
    if priority is None:
        return "does not answer"
    if priority == 0:
        return "is never to be promoted (replica-priority 0)"
    return f"has been silent for {replica['lag']} s" if int(replica["lag"]) > _MAX_LAG_S else ""


def _names(cluster: ClusterFile) -> dict[str, str]:
    """Return the nodes of the cluster's own Redis servers by their addresses; none where it has a Redis of yours."""
    return (
        {} if cluster.redis.url else {f"{node.address}:{REDIS_PORT}": name for name, node in cluster.nodes.items() if node.redis}
    )


def _address(names: Mapping[str, str], to: str) -> str:
    for address, name in names.items():
        if to in (name, address):
            return address
    if names:
        raise LifecycleError(f"There is no Redis of the chat on {to!r}; there is one on {', '.join(names.values())}.")
    return to
