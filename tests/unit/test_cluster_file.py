"""The cluster file: what an operator can say in it, what is refused, and what all nodes must have alike."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import cluster_file
from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.lab import places
from cluster.settings import PROJECT_ROOT

CONFIG = PROJECT_ROOT / "configs" / "cluster.yaml"
SMALL: dict[str, Any] = {
    "name": "small",
    "head": "one",
    "serve_config": "serve.yaml",
    "nodes": {
        "one": {"address": "10.1.0.1", "redis": "primary", "control_redis": True},
        "two": {"address": "10.1.0.2", "redis": "replica"},
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    return deepcopy(SMALL) | changes


def loaded(folder: Path, content: dict[str, Any]) -> ClusterFile:
    file = folder / "some.yaml"
    file.write_text(yaml.safe_dump(content))
    return cluster_file.load(file)


def test_the_operators_file_describes_the_four_machines() -> None:
    cluster = cluster_file.load(CONFIG)
    assert {name: node.address for name, node in cluster.nodes.items()} == {
        "aurora": "10.0.0.1",
        "star": "10.0.0.2",
        "vengeance": "10.0.0.3",
        "iceland": "10.0.0.4",
    }
    assert (cluster.head, cluster.url("star")) == ("aurora", "http://10.0.0.2:8000")
    assert cluster.redis_url == "sentinel://10.0.0.1:26379,10.0.0.3:26379,10.0.0.4:26379/aurora"
    assert cluster.control_redis == "10.0.0.4:6380"
    assert cluster.redis.durability_replicas == 1
    assert cluster.serve_config == CONFIG.parent / "cluster-serve.yaml"
    assert cluster.serve_config.exists()
    assert cluster.ray.token_file == CONFIG.parent / "ray-token"


def test_any_one_of_its_machines_may_die_and_redis_has_a_primary_a_replica_and_a_majority_of_sentinels() -> None:
    for file in (CONFIG, places.CLUSTER):
        cluster = cluster_file.load(file)
        assert not cluster.nodes[cluster.head].control_redis, "it keeps the head's state"
        sentinels = sum(node.sentinel for node in cluster.nodes.values())
        for dead in cluster.nodes:
            others = [node for name, node in cluster.nodes.items() if name != dead]
            assert sum(node.redis is not None for node in others) > cluster.redis.durability_replicas
            assert sum(node.sentinel for node in others) > sentinels / 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(head="three"), ["head", "'three'"]),
        (changed(nodes={**SMALL["nodes"], "three": {"address": "10.1.0.1"}}), ["same address"]),
        (changed(nodes={**SMALL["nodes"], "three": {"address": "10.1.0.3", "redis": "primary"}}), ["exactly one", "primary"]),
        (changed(nodes={"one": SMALL["nodes"]["one"]}), ["durability_replicas"]),
        (changed(redis={"durability_replicas": 2}), ["durability_replicas"]),
        (changed(nodes={**SMALL["nodes"], "one": {"address": "10.1.0.1", "redis": "primary"}}), ["ray.redis", "control_redis"]),
        (changed(nodes={**SMALL["nodes"], "one": {"address": "one.example"}}), ["nodes.one.address"]),
        (changed(nodes={**SMALL["nodes"], "no name": {"address": "10.1.0.3"}}), ["nodes.no name"]),
        (
            changed(nodes={**SMALL["nodes"], "three": {"address": "10.1.0.3", "labels": {"aurora/node": "four"}}}),
            ["nodes.three.labels", "aurora/node", "take it out"],
        ),
        (changed(redis={"url": "redis://10.9.0.1"}), ["redis.url", "one, two have"]),
        (changed(prot=8000), ["prot"]),
        (changed(ray={"gcs_prot": 1}), ["ray.gcs_prot"]),
        (changed(port=0), ["port"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_it(tmp_path: Path, content: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(LifecycleError) as refused:
        loaded(tmp_path, content)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    for word in ["some.yaml", *words]:
        assert word in said


def test_a_file_that_is_missing_or_no_yaml_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    for file in (broken, tmp_path / "missing.yaml"):
        with pytest.raises(LifecycleError, match=file.name) as refused:
            cluster_file.load(file)
        assert len(str(refused.value).splitlines()) == 1


def test_without_sentinels_the_primary_is_named_and_a_redis_of_the_operators_is_taken_as_it_is(tmp_path: Path) -> None:
    assert loaded(tmp_path, SMALL).redis_url == "redis://10.1.0.1:6379/0"
    url = "sentinel://:secret@10.9.0.1,10.9.0.2/chat"
    nodes = {"one": {"address": "10.1.0.1"}}
    theirs = loaded(tmp_path, changed(nodes=nodes, redis={"url": url}, ray={"redis": "10.9.0.3:6380"}))
    assert (theirs.redis_url, theirs.control_redis) == (url, "10.9.0.3:6380")


def test_what_nodes_must_have_alike_tells_secrets_apart_and_shows_none(tmp_path: Path) -> None:
    def agreed(password: str, token: str) -> dict[str, str]:
        (tmp_path / "token").write_text(f"{token}\n")
        url = f"redis://user:{password}@10.9.0.1/0"
        nodes = {"one": {"address": "10.1.0.1", "control_redis": True}}
        return loaded(tmp_path, changed(nodes=nodes, redis={"url": url}, ray={"token_file": "token"})).agreed()

    one = agreed("pass-one", "token-one")
    assert agreed("pass-one", "token-one") == one
    for other, where in ((agreed("pass-two", "token-one"), "redis"), (agreed("pass-one", "token-two"), "token")):
        [differs] = [name for name in one if one[name] != other[name]]
        assert where in differs
    assert not any(secret in value for value in one.values() for secret in ("pass-one", "token-one"))


def test_a_token_that_is_not_there_is_asked_for_with_the_way_to_make_one(tmp_path: Path) -> None:
    cluster = loaded(tmp_path, changed(ray={"token_file": "token"}))
    with pytest.raises(LifecycleError, match="openssl rand"):
        cluster.agreed()
    assert loaded(tmp_path, SMALL).token == ""
    assert loaded(tmp_path, SMALL).dashboard_headers == {}
