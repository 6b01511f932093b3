"""Moving the Redis primary to a node, as an operator does it: a planned failover by Sentinel."""

import time

import redis

from cluster.cluster_file import REDIS_PORT, SENTINEL_PORT, ClusterFile

_POLL_S = 0.5


class NotReady(Exception):
    """The lab did not come into the state that was asked for."""


def move_primary(cluster: ClusterFile, node: str | None, deadline: float) -> None:
    """Have the Sentinels make the Redis on `node` the primary, or any replica; returns when it is no longer the old one.

    Raises:
        NotReady: by the deadline (monotonic) they did not do it; says what they said.
    """
    address = cluster.nodes[node].address if node else ""
    if address:
        with redis.Redis(address, REDIS_PORT, socket_timeout=2) as client:
            client.config_set("replica-priority", 1)  # the lowest is preferred, and the others have 100
    sentinel_at = next(each.address for each in cluster.nodes.values() if each.sentinel)
    with redis.Redis(sentinel_at, SENTINEL_PORT, socket_timeout=2, decode_responses=True) as sentinel:
        old, refusal, begun = _primary(sentinel, cluster.redis.master), "it has not begun", False
        while _primary(sentinel, cluster.redis.master) == old:
            if not begun:
                refusal = _try(sentinel, cluster.redis.master, address)
                begun = not refusal
            if time.monotonic() > deadline:
                raise NotReady(f"The Sentinel at {sentinel_at} does not make {node or 'another node'} the primary: {refusal}.")
            time.sleep(_POLL_S)


def _primary(sentinel: "redis.Redis", master: str) -> str:
    """Return the address of the primary as the Sentinel knows it."""
    return str(sentinel.sentinel_get_master_addr_by_name(master))


def _try(sentinel: "redis.Redis", master: str, address: str) -> str:
    """Ask for the failover; return why it is not to be yet."""
    try:
        if address:
            known = {replica["ip"]: replica for replica in sentinel.sentinel_slaves(master)}
            if address not in known:
                return "it does not know it as a replica"
            # It looks at its replicas every ten seconds.
            if int(known[address]["slave-priority"]) != 1 or known[address]["master-link-status"] != "ok":
                return "it does not prefer it yet"
        sentinel.sentinel_failover(master)
    except redis.RedisError as error:
        return str(error)
    return ""
