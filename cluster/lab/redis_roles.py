"""What each Redis of the lab says of itself."""

from dataclasses import dataclass

import redis

from cluster.cluster_file import REDIS_PORT, SENTINEL_PORT, ClusterFile

_TIMEOUT_S = 0.5


@dataclass(frozen=True)
class RedisRole:
    """A Redis process as it sees itself."""

    role: str
    """`primary`, `replica`, or `down` where nobody answers."""
    follows: str = ""
    """Of a replica: the address of its primary."""
    in_sync: bool = False
    """Of a replica: whether its link to the primary is up; of a primary: true."""
    replicas: int = 0
    """Of a primary: how many replicas it has."""
    offset: int = 0
    """How far it is in the stream of writes, in bytes."""


def role(address: str) -> RedisRole:
    """Ask the chat's Redis at an address for its role."""
    try:
        with redis.Redis(host=address, port=REDIS_PORT, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client:
            name, *rest = client.execute_command("ROLE")
    except redis.RedisError:
        return RedisRole("down")
    if name == b"master":
        return RedisRole("primary", in_sync=True, replicas=len(rest[1]), offset=int(rest[0]))
    return RedisRole("replica", follows=rest[0].decode(), in_sync=rest[2] == b"connected", offset=int(rest[3]))


def sentinel_sees(cluster: ClusterFile, address: str) -> tuple[str, int, int] | None:
    """Ask a Sentinel: the primary's address, how many replicas and how many other Sentinels it knows; None if it is silent."""
    try:
        with redis.Redis(
            host=address, port=SENTINEL_PORT, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, decode_responses=True
        ) as client:
            answer = client.execute_command("SENTINEL", "MASTER", cluster.redis.master)
    except redis.RedisError:
        return None
    known = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
    return str(known["ip"]), int(known["num-slaves"]), int(known["num-other-sentinels"])
