"""Moving the Redis primary, as an operator does it: a planned failover that loses nothing that was acknowledged.

`SENTINEL FAILOVER` alone does not promise that: the old primary takes writes while a replica is promoted, and what only the
other replica has, though `WAIT 1` was content with it, is gone when that one turns to the new primary too. (In the lab, under
400 messages in 4 s, it cost 65 to 93 acknowledged ones each time.) So writes pause until the old primary is a replica; the
Sentinels alone take ten seconds to make it one.
"""

import time
from collections.abc import Callable

import redis

from cluster.cluster_file import REDIS_PORT, SENTINEL_PORT, ClusterFile

_POLL_S = 0.1
_PAUSE_MS = 15_000
"""Writes go on by themselves after so long, should we fail half way."""


class NotReady(Exception):
    """The lab did not come into the state that was asked for."""


def move_primary(cluster: ClusterFile, node: str | None, deadline: float) -> None:
    """Have the Sentinels make the Redis on `node` the primary, or any replica; returns when they have.

    Raises:
        NotReady: it was not done by the deadline (monotonic); says how far it came.
    """
    master = cluster.redis.master
    sentinel_at = next(each.address for each in cluster.nodes.values() if each.sentinel)
    with redis.Redis(sentinel_at, SENTINEL_PORT, socket_timeout=2, decode_responses=True) as sentinel:
        old = _primary(sentinel, master)
        if node:
            address = cluster.nodes[node].address
            _prefer(address)
            _until(lambda: _is_preferred(sentinel, master, address), deadline, f"the Sentinel prefers the Redis on {node}")
        with redis.Redis(old, REDIS_PORT, socket_timeout=2, decode_responses=True) as primary:
            primary.client_pause(_PAUSE_MS, all=False)
            _until(lambda: _replicas_have_all(primary), deadline, "every replica has every write")
            _until(lambda: _asked(sentinel, master), deadline, "the Sentinel begins")
            _until(lambda: _primary(sentinel, master) != old, deadline, "there is another primary")
            primary.replicaof(_primary(sentinel, master), REDIS_PORT)
            primary.client_unpause()
        if node:
            _prefer_nobody(address)


def _prefer(address: str) -> None:
    with redis.Redis(address, REDIS_PORT, socket_timeout=2) as client:
        client.config_set("replica-priority", 1)  # the lowest is preferred, and the others have 100


def _prefer_nobody(address: str) -> None:
    """Undo it, also in the file: a failover must go to whoever has most, or what was acknowledged is lost."""
    with redis.Redis(address, REDIS_PORT, socket_timeout=2) as client:
        client.config_set("replica-priority", 100)
        client.config_rewrite()


def _is_preferred(sentinel: "redis.Redis", master: str, address: str) -> bool:
    """Whether the Sentinel has noticed, which it does every ten seconds, and sees the replica's link up."""
    known = {replica["ip"]: replica for replica in sentinel.sentinel_slaves(master)}
    return address in known and int(known[address]["slave-priority"]) == 1 and known[address]["master-link-status"] == "ok"


def _replicas_have_all(primary: "redis.Redis") -> bool:
    said = primary.info("replication")
    replicas = [said[f"slave{number}"] for number in range(said["connected_slaves"])]
    return bool(replicas) and all(int(each["offset"]) >= said["master_repl_offset"] for each in replicas)


def _asked(sentinel: "redis.Redis", master: str) -> bool:
    try:
        sentinel.sentinel_failover(master)
    except redis.ResponseError:  # another failover is under way, or no replica is good yet
        return False
    return True


def _primary(sentinel: "redis.Redis", master: str) -> str:
    """Return the address of the primary as the Sentinel knows it."""
    found = sentinel.sentinel_get_master_addr_by_name(master)
    if not isinstance(found, tuple):
        raise NotReady(f"The Sentinel knows no primary called {master}.")
    return str(found[0])


def _until(condition: Callable[[], bool], deadline: float, goal: str) -> None:
    while not condition():
        if time.monotonic() > deadline:
            raise NotReady(f"The Redis primary does not move: waited until {goal}.")
        time.sleep(_POLL_S)
