"""The environment and the options of Ray on a node of a cluster."""

from collections.abc import Mapping
from pathlib import Path

from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.ray_environment import common

# Whoever refuses connections is given up after about 8 s, whoever is silent after about 40: nothing that a user sees waits for
# it, and a living node given up by mistake ends all of its replicas. (A partition of 6 s is one of 13 s for a connection that
# is open, as TCP doubles the time between its attempts.)
_HEALTH_CHECK_MS = {"initial_delay": 5000, "period": 1000, "timeout": 4000}
_HEALTH_CHECK_FAILURES = 8


def environment(
    cluster: ClusterFile, name: str, node: NodeSpec, *, folder: Path, mark: Mapping[str, str], is_head: bool
) -> dict[str, str]:
    """Return the environment of Ray on `node`, which every replica there inherits."""
    env = common(folder, mark=mark, node_name=name, redis_url=cluster.redis_url, token_file=cluster.ray.token_file)
    env |= {
        "AURORA_NODE_URL": f"http://{node.address}:{cluster.port}",
        "AURORA_NODE_ADDRESS": node.address,
        "AURORA_DURABILITY_REPLICAS": str(cluster.redis.durability_replicas),
        **{f"RAY_health_check_{name}_ms": str(value) for name, value in _HEALTH_CHECK_MS.items()},
        "RAY_health_check_failure_threshold": str(_HEALTH_CHECK_FAILURES),
    }
    if is_head:
        env |= {"RAY_REDIS_ADDRESS": cluster.control_redis, "RAY_external_storage_namespace": cluster.name}
    return env


def start_options(cluster: ClusterFile, name: str, node: NodeSpec, *, folder: Path, is_head: bool) -> list[str]:
    """Return the options of `ray start`."""
    labels = {"aurora/node": name, **node.labels}
    options: dict[str, object] = {
        "node-ip-address": node.address,
        "temp-dir": folder,
        "labels": ",".join(f"{key}={value}" for key, value in labels.items()),
        # Nothing of Aurora goes through Ray's object store.
        "object-store-memory": 100_000_000,
    }
    options |= {f"num-{what}": amount for what, amount in (("cpus", node.cpus), ("gpus", node.gpus)) if amount != "auto"}
    if is_head:
        options |= {
            "port": cluster.ray.gcs_port,
            "dashboard-host": node.address,
            "dashboard-port": cluster.ray.dashboard_port,
        }
    else:
        options["address"] = f"{cluster.head_address}:{cluster.ray.gcs_port}"
    switches = ["--head"] if is_head else []
    return [*switches, "--block", "--disable-usage-stats", "--log-style=record", *(f"--{k}={v}" for k, v in options.items())]
