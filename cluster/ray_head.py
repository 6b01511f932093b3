"""Ray on this machine: one head, of and for itself, reachable from nowhere else.

Ray is started as a program. Its node address is always the loopback one, whatever the chat API listens on: its
dashboard and its Serve API run code for whoever reaches them.
"""

import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from cluster.failures import LifecycleError
from cluster.ports import InternalPorts, replica_window
from cluster.processes import start
from cluster.ray_environment import QUIETLY, common, prepare_folder
from cluster.settings import PROJECT_ROOT, Settings


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
    token = None if settings.is_loopback else token_file(settings.home)
    env = common(settings.ray_folder, mark=mark, node_name=settings.node_name, redis_url=redis_url, token_file=token)
    return env | {
        # Read by deployments/: Serve's gRPC between replicas would listen on every interface.
        "AURORA_LOOPBACK": "1",
        # Expected: `--node-ip-address=127.0.0.1` is kept. Actual: on Linux Ray replaces it by the machine's address, and
        # then nearly all of its ports listen on every interface. This is the switch in `services.resolve_ip_for_localhost`.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Nobody else takes over what this one machine serves, so there is nothing to wait for (else up to 30 s) at the end.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports["fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports["fallback_grpc"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports["replicas_first"]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports["replicas_last"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports["haproxy_stats"]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports["haproxy_metrics"]),
    }


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
    command = [str(ray), "start", "--head", *QUIETLY]
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
