"""What lives on each lab node, and the files it is started with: written once, then kept by those that run."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster import redis_conf
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.lab import places
from cluster.packages import ensure
from cluster.redis_conf import CONTROL, REDIS, SENTINEL
from cluster.settings import PROJECT_ROOT

RAY = "ray"

__all__ = ["CONTROL", "RAY", "REDIS", "SENTINEL", "remove", "write", "write_newcomer"]


def write(cluster: ClusterFile, *, deploy: Path) -> None:
    """Write the files of every node; the head is to have Serve run the configuration `deploy`."""
    hosts = [f"{node.address} {name}" for name, node in cluster.nodes.items()]
    (places.HOME / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
    for name, node in cluster.nodes.items():
        role = ["--head", f"--deploy={deploy}"] if name == cluster.head else []
        _write(cluster, name, node, role)


def write_newcomer(cluster: ClusterFile, name: str, node: NodeSpec) -> None:
    """Write the files of a machine that the cluster file does not name."""
    with (places.HOME / "hosts").open("a") as hosts:  # not anew: the nodes have this very file mounted
        hosts.write(f"{node.address} {name}\n")
    _write(cluster, name, node, ["--join", cluster.head, *(f"--label={key}={value}" for key, value in node.labels.items())])
    places.note_newcomer(name, node.address)


def _write(cluster: ClusterFile, name: str, node: NodeSpec, role: Sequence[str]) -> None:
    folder = places.folder(name)
    for each in ("log", "tmp", "hold"):
        (folder / each).mkdir(parents=True)
    (folder / "units.json").write_text(json.dumps(list(_units(cluster, name, node, role)), indent=2))


def _units(cluster: ClusterFile, name: str, node: NodeSpec, role: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path, content in redis_conf.configurations(cluster, node, places.folder(name)).items():
        path.parent.mkdir()
        path.write_text(content)
        unit = path.stem
        # A Sentinel asks the primary for its replicas every 10 s: the first time, they should be there.
        first_s = 1.5 if unit == SENTINEL else 0.0
        command = [ensure(redis_conf.PROGRAMS[unit]), str(path)]
        yield _unit(unit, command, restart_s=redis_conf.RESTART_S[unit], first_s=first_s)
    command = [sys.executable, "-m", "cluster", "node", "start", "--name", name, "--config", str(places.CLUSTER), *role]
    yield _unit(RAY, command, environment={"AURORA_HOME": str(places.ray_home(name))})


def _unit(
    name: str,
    command: list[str],
    *,
    environment: dict[str, str] | None = None,
    restart_s: float = 1.0,
    first_s: float = 0.0,
) -> dict[str, Any]:
    return {
        "name": name,
        "command": command,
        "environment": {"PYTHONPATH": str(PROJECT_ROOT), **(environment or {})},
        "restart_s": restart_s,
        "first_s": first_s,
    }


def remove() -> None:
    """Remove the lab's folder."""
    shutil.rmtree(places.HOME, ignore_errors=True)
