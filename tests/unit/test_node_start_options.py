"""What a node tells `ray start`: where it is, what it has, and the labels by which replicas are placed."""

from pathlib import Path

import pytest
from ray._private.label_utils import parse_node_labels_string

from cluster import cluster_file
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.lab import places
from cluster.node.environment import start_options
from cluster.settings import PROJECT_ROOT

CLUSTER = cluster_file.load(PROJECT_ROOT / "configs" / "cluster.yaml")
LAB = cluster_file.load(places.CLUSTER)


def options_of(node: NodeSpec, *, name: str = "star", cluster: ClusterFile = CLUSTER) -> dict[str, str]:
    """The options with a value, by name; each is said once."""
    said = start_options(cluster, name, node, folder=Path("/tmp/some-folder"), is_head=name == cluster.head)
    valued = [option.removeprefix("--").partition("=") for option in said if "=" in option]
    options = {key: value for key, _, value in valued}
    assert len(options) == len(valued)
    return options


def labels_of(node: NodeSpec, *, name: str = "star", cluster: ClusterFile = CLUSTER) -> dict[str, str]:
    """The labels, as Ray itself reads them."""
    labels: dict[str, str] = parse_node_labels_string(options_of(node, name=name, cluster=cluster)["labels"])
    return labels


def node(**facts: object) -> NodeSpec:
    return NodeSpec.model_validate({"address": "10.0.0.2", **facts})


@pytest.mark.parametrize("what", ["gpus", "cpus"])
def test_ray_finds_out_what_a_node_has_unless_a_number_is_said(what: str) -> None:
    assert f"num-{what}" not in options_of(node())
    assert f"num-{what}" not in options_of(node(**{what: "auto"}))
    options = options_of(node(**{what: 2}))
    assert options[f"num-{what}"] == "2"
    assert [key for key in options if key.startswith("num-")] == [f"num-{what}"], "and nothing of the others"
    assert options_of(node(**{what: 0}))[f"num-{what}"] == "0", "none is a number, too"


def test_a_node_has_its_name_as_a_label_with_others_and_without() -> None:
    assert labels_of(node(), name="star") == {"aurora/node": "star"}
    labels = {"aurora/gpu": "true", "zone": "attic"}
    assert labels_of(node(labels=labels), name="guest") == {"aurora/node": "guest", **labels}


@pytest.mark.parametrize("cluster", [CLUSTER, LAB], ids=["configs/cluster.yaml", "the lab's"])
def test_what_the_cluster_file_says_of_each_node_reaches_ray(cluster: ClusterFile) -> None:
    for name, spec in cluster.nodes.items():
        options = options_of(spec, name=name, cluster=cluster)
        assert options["node-ip-address"] == spec.address
        assert labels_of(spec, name=name, cluster=cluster) == {"aurora/node": name, **spec.labels}
        numbers = {"num-gpus": spec.gpus, "num-cpus": spec.cpus}
        said = {key: int(options[key]) for key in numbers if key in options}
        assert said == {key: number for key, number in numbers.items() if number != "auto"}
