"""The configuration of the cluster's own Redis processes, as law 8 (acknowledged means kept) needs it; lab and nodes share it.

Redis and Sentinel write into these files: after a failover a server's role stands in its own. So a file is written once,
and whoever has one keeps it.
"""

from pathlib import Path

from cluster.cluster_file import CONTROL_REDIS_PORT, REDIS_PORT, SENTINEL_PORT, ClusterFile, NodeSpec

REDIS, SENTINEL, CONTROL = "redis", "sentinel", "control-redis"

PROGRAMS = {REDIS: "redis-server", SENTINEL: "redis-sentinel", CONTROL: "redis-server"}
"""The program of each; all of them are Redis 7 or newer, as an older one ignores `min-replicas-to-write` within scripts."""

OLDEST = (7, 0)

DOWN_AFTER_MS = 1500
FAILOVER_TIMEOUT_MS = 3000

RESTART_S = {REDIS: 4.0, SENTINEL: 1.0, CONTROL: 1.0}
"""Seconds to wait before a dead one is started again.

A primary that is back before the Sentinels have noticed would go on without what its file lacks, and the replicas with it.
"""


def configurations(cluster: ClusterFile, node: NodeSpec, folder: Path) -> dict[Path, str]:
    """Return the files, with their content, of the Redis processes on `node`: `folder/NAME/NAME.conf`, data beside it."""
    options = {}
    if node.redis:
        primary = None if node.redis == "primary" else cluster.redis_primary.address
        options[REDIS] = _redis(node.address, cluster.redis.durability_replicas, primary)
    if node.sentinel:
        options[SENTINEL] = _sentinel(cluster, node.address)
    if node.control_redis:
        options[CONTROL] = _control(node.address)
    return {path_of(name, folder): _text(path_of(name, folder).parent, lines) for name, lines in options.items()}


def path_of(name: str, folder: Path) -> Path:
    """Return where the configuration of `name` lies."""
    return folder / name / f"{name}.conf"


def says_the_same(written: str, text: str) -> bool:
    """Tell whether a file that Redis has written into still says, of `text`, what Redis itself never changes."""
    lasting = {line for line in text.splitlines() if line.startswith(("bind ", "port ", "min-replicas-to-write "))}
    return lasting <= set(written.splitlines())


def _text(folder: Path, options: list[str]) -> str:
    return "\n".join([f"dir {folder}", "daemonize no", "protected-mode no", *options, ""])


def _redis(address: str, replicas: int, primary: str | None) -> list[str]:
    options = [
        f"bind {address} 127.0.0.1",
        f"port {REDIS_PORT}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        f"min-replicas-to-write {replicas}",
        "min-replicas-max-lag 3",
        "repl-ping-replica-period 1",
        "repl-timeout 5",
        "repl-diskless-sync yes",
        "repl-diskless-sync-delay 0",
        "client-output-buffer-limit pubsub 64mb 16mb 30",
    ]
    return [*options, f"replicaof {primary} {REDIS_PORT}"] if primary else options


def _sentinel(cluster: ClusterFile, address: str) -> list[str]:
    master, primary = cluster.redis.master, cluster.redis_primary.address
    quorum = sum(node.sentinel for node in cluster.nodes.values()) // 2 + 1
    replicas = sum(node.redis == "replica" for node in cluster.nodes.values())
    return [
        f"bind {address} 127.0.0.1",
        f"port {SENTINEL_PORT}",
        f"sentinel monitor {master} {primary} {REDIS_PORT} {quorum}",
        f"sentinel down-after-milliseconds {master} {DOWN_AFTER_MS}",
        f"sentinel failover-timeout {master} {FAILOVER_TIMEOUT_MS}",
        f"sentinel parallel-syncs {master} {max(1, replicas)}",
    ]


def _control(address: str) -> list[str]:
    return [
        f"bind {address} 127.0.0.1",
        f"port {CONTROL_REDIS_PORT}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
    ]
