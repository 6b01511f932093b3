"""The environment and the options of Ray on a node of a cluster."""

import re
from collections.abc import Mapping
from pathlib import Path

from cluster.cluster_file import NODE_LABEL, ClusterFile, NodeSpec
from cluster.processes import MARK
from cluster.ray_environment import QUIETLY, common
from cluster.settings import Settings

OF_A_MACHINE = frozenset(
    {
        *(f"AURORA_{name.upper()}" for name in Settings.model_fields),
        MARK,
        "AURORA_CARETAKER",
        "AURORA_HAPROXY_BINARY",
        "AURORA_NODE_ADDRESS",
        "AURORA_NODE_URL",
        # What `node install` writes into .env, for the unit and for compose.
        "AURORA_GID",
        "AURORA_NODE_FOLDER",
        "AURORA_NODE_START",
        "AURORA_UID",
        # Paths, and the two ports that the HAProxy of a node has for itself.
        "RAY_AUTH_TOKEN_PATH",
        "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR",
        "RAY_SERVE_HAPROXY_BINARY_PATH",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC",
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE",
        "RAY_SERVE_HAPROXY_SOCKET_PATH",
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_TLS_CA_CERT",
        "RAY_TLS_SERVER_CERT",
        "RAY_TLS_SERVER_KEY",
        # Of the head alone.
        "RAY_REDIS_ADDRESS",
        "RAY_enable_autoscaler_v2",
        "RAY_external_storage_namespace",
        # What Ray's launcher tells each machine of itself.
        "RAY_CLOUD_INSTANCE_ID",
        "RAY_CLOUD_INSTANCE_TYPE_NAME",
        "RAY_HEAD_IP",
        "RAY_NODE_TYPE_NAME",
        "RAY_OVERRIDE_LABELS",
        "RAY_OVERRIDE_RESOURCES",
    }
)
"""The variables that may differ between the nodes of a cluster."""

# Made of what the cluster file says, which is compared itself, its secrets as digests.
_OF_THE_FILE = frozenset({"AURORA_DURABILITY_REPLICAS", "AURORA_REDIS_URL", "RAY_AUTH_MODE"})
# Serve reads a few without a prefix of its own.
_OURS = (
    "AURORA_",
    "RAY_",
    "SERVE_",
    "LISTEN_FOR_CHANGE_REQUEST_TIMEOUT_S_",
    "MODEL_LOAD_LATENCY_BUCKETS_MS",
    "REQUEST_LATENCY_BUCKETS_MS",
)
_SECRET_NAME = re.compile("TOKEN|PASSW|SECRET|CREDENTIAL|KEY|HEADER|AUTH", re.IGNORECASE)
_SECRET_VALUE = re.compile("://.*@")

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


def shared(env: Mapping[str, str]) -> dict[str, str]:
    """Return what in `env`, the environment of Ray on one node, must be the same on every other one.

    That is whatever Ray, Serve or Aurora may read, also what the operator has set and we do not know; not what is of a machine,
    and not what may be a secret, as it is told to the other nodes.
    """
    return {
        name: value
        for name, value in env.items()
        if name.startswith(_OURS)
        and name not in OF_A_MACHINE | _OF_THE_FILE
        and not _SECRET_NAME.search(name)
        and not _SECRET_VALUE.search(value)
    }


def start_options(cluster: ClusterFile, name: str, node: NodeSpec, *, folder: Path, is_head: bool) -> list[str]:
    """Return the options of `ray start`."""
    labels = {NODE_LABEL: name, **node.labels}
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
    return [*switches, *QUIETLY, *(f"--{k}={v}" for k, v in options.items())]
