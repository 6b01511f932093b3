"""What describes a node to systemd, Docker, Ray's launcher and KubeRay agrees with the project, and with what those accept."""

import json
import os
import re
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from cluster import cluster_file, redis_conf, units
from cluster.lab import places
from cluster.node.environment import OF_A_MACHINE, environment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at its import
    from ray.autoscaler._private.util import prepare_config, validate_config

PROJECT = Path(__file__).resolve().parents[2]
CONTAINER = PROJECT / "cluster" / "container"
# A pod is told these too, otherwise: by a secret of Kubernetes, and by KubeRay.
OF_KUBERAY = {"AURORA_REDIS_URL", "RAY_AUTH_MODE"}
# Of one machine, and yet the same in every pod: they have one image.
OF_THE_IMAGE = {"AURORA_HAPROXY_BINARY", "RAY_SERVE_HAPROXY_BINARY_PATH"}


def project_version() -> str:
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"])


def load(path: str) -> dict[str, Any]:
    content = yaml.safe_load((PROJECT / path).read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("path", sorted((PROJECT / "cluster" / "units").glob("*.service")), ids=lambda path: path.name)
def test_every_unit_restarts_what_dies_and_never_gives_up(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert {"Restart=always", "StartLimitIntervalSec=0", "PartOf=aurora.target", "User=aurora"} <= set(lines)
    name = path.stem.removeprefix("aurora-")
    if name in redis_conf.RESTART_S:
        assert f"RestartSec={redis_conf.RESTART_S[name]:.0f}" in lines
        assert str(redis_conf.path_of(name, units.PREFIX)) in path.read_text()


def test_a_primary_comes_back_later_than_the_sentinels_have_noticed_its_death() -> None:
    assert redis_conf.RESTART_S[redis_conf.REDIS] * 1000 > 2 * redis_conf.DOWN_AFTER_MS
    delay = re.search(
        r"sleep (\d+); exec redis-server", load("cluster/container/compose.yaml")["services"]["redis"]["entrypoint"][2]
    )
    assert delay is not None
    assert int(delay.group(1)) * 1000 > 2 * redis_conf.DOWN_AFTER_MS


def test_a_node_gets_the_units_of_what_lives_on_it_and_all_hang_on_the_target() -> None:
    cluster = cluster_file.load(places.CLUSTER)
    assert units.of_node(cluster.nodes["aurora"], is_head=True) == ["aurora-sentinel.service", units.HEAD, units.TARGET]
    assert units.of_node(cluster.nodes["iceland"], is_head=False) == [
        "aurora-redis.service",
        "aurora-sentinel.service",
        "aurora-control-redis.service",
        units.WORKER,
        units.TARGET,
    ]


def test_what_redis_writes_into_its_file_does_not_count_as_a_difference() -> None:
    cluster = cluster_file.load(places.CLUSTER)
    texts = redis_conf.configurations(cluster, cluster.nodes["iceland"], Path("/node"))
    text = texts[Path("/node/redis/redis.conf")]
    assert redis_conf.says_the_same(
        text.replace("replicaof 198.18.0.2", "replicaof 198.18.0.3") + "# Generated\nlatency 50\n", text
    )
    assert not redis_conf.says_the_same(text.replace("min-replicas-to-write 1", "min-replicas-to-write 0"), text)


def test_the_quorum_is_more_than_half_of_the_sentinels() -> None:
    cluster = cluster_file.load(places.CLUSTER)
    sentinel = redis_conf.configurations(cluster, cluster.nodes["aurora"], Path("/node"))[Path("/node/sentinel/sentinel.conf")]
    assert "sentinel monitor aurora 198.18.0.2 6379 2" in sentinel.splitlines()


def test_everything_that_the_image_is_made_of_exists_and_gets_past_the_ignore_file() -> None:
    copied = re.findall(r"^COPY (\S+)", (CONTAINER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert copied == ["requirements.lock", "pyproject.toml", "serve_app", "deployments", "cluster", "configs"]
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((PROJECT / name).exists() and f"!{name}" in ignored for name in copied)


def test_compose_and_kubernetes_run_this_version_of_the_image() -> None:
    image = f"aurora-chat-backend:{project_version()}"
    assert load("cluster/container/compose.yaml")["services"]["chat-backend"]["image"] == image
    assert {container["image"] for template in pods() for container in template["spec"]["containers"]} == {image}
    assert image in (CONTAINER / "Dockerfile").read_text()


def test_the_launcher_file_is_one_that_ray_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    launcher = load("cluster/launch/ray-cluster.yaml")
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(launcher, json.loads(schema.read_text()))
    prepared = prepare_config(launcher)
    validate_config(prepared)
    assert prepared["max_workers"] == len(launcher["provider"]["worker_ips"])
    assert all((PROJECT / mounted).exists() for mounted in launcher["file_mounts"].values())
    capsys.readouterr()  # Ray warns that some of them are files


def pods() -> list[dict[str, Any]]:
    cluster = load("cluster/kubernetes/rayservice.yaml")["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_rayservice_has_what_its_resource_definition_requires() -> None:
    manifest = load("cluster/kubernetes/rayservice.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["labels"] == {"aurora/gpu": "true"}
    assert "labels" not in cluster["headGroupSpec"]


def test_the_rayservice_runs_what_a_cluster_of_machines_runs() -> None:
    inner = load("cluster/kubernetes/rayservice.yaml")["spec"]["serveConfigV2"]
    assert yaml.safe_load(inner) == load("configs/cluster-serve.yaml")


def test_a_pod_is_told_the_same_as_a_machine() -> None:
    cluster = cluster_file.load(places.CLUSTER)
    machine = environment(cluster, "star", cluster.nodes["star"], folder=Path("/node"), mark={}, is_head=False)
    told = {name: value for name, value in machine.items() if os.environ.get(name) != value} | {"PYTHONPATH": str(PROJECT)}
    for template in pods():
        env = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}
        for name in told.keys() - (OF_A_MACHINE - OF_THE_IMAGE) - OF_KUBERAY:
            ours = told[name].replace(str(PROJECT), "/opt/aurora-node")
            if name == "AURORA_HAPROXY_BINARY":
                ours = re.sub(r"^.*/site-packages", "/usr/local/lib/python3.11/site-packages", ours)
            assert env[name] == ours, name
