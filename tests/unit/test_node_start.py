"""Which node a machine is, before it starts as one."""

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.node.start import is_named, newcomer, this_node
from cluster.terminal import signals_as_interrupt

HERE, ELSEWHERE = "127.0.0.1", "192.0.2.1"


def described(**addresses: str) -> dict[str, Any]:
    nodes = {name: {"address": address} for name, address in addresses.items()}
    return {
        "name": "test",
        "head": next(iter(addresses)),
        "serve_config": "serve.yaml",
        "nodes": nodes,
        "redis": {"url": f"redis://{ELSEWHERE}/0"},
        "ray": {"redis": f"{ELSEWHERE}:6380"},
    }


def cluster_of(**addresses: str) -> ClusterFile:
    return ClusterFile.model_validate(described(**addresses))


def test_a_machine_is_the_node_that_has_its_address_unless_another_name_is_said() -> None:
    cluster = cluster_of(aurora=ELSEWHERE, star=HERE)
    assert this_node(cluster, None) == ("star", cluster.nodes["star"])
    assert this_node(cluster, "aurora") == ("aurora", cluster.nodes["aurora"])
    assert is_named(cluster, None)
    assert is_named(cluster, "aurora")
    assert not is_named(cluster, "newcomer")


def test_a_machine_that_the_file_does_not_name_is_told_so() -> None:
    cluster = cluster_of(aurora=ELSEWHERE)
    assert not is_named(cluster, None)
    with pytest.raises(LifecycleError, match="address of this machine"):
        this_node(cluster, None)
    with pytest.raises(LifecycleError, match="there are: aurora"):
        this_node(cluster, "star")


def test_a_newcomer_has_the_address_by_which_it_reaches_the_head() -> None:
    name, node = newcomer(cluster_of(aurora="127.0.0.2"), "guest", {"zone": "attic"})
    assert (name, node.address, node.labels) == ("guest", HERE, {"zone": "attic"})
    assert (node.redis, node.sentinel, node.control_redis) == (None, False, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--join", "192.0.2.9"], ["The head", "aurora", ELSEWHERE, "192.0.2.9"]),
        (["--head"], ["The head", "aurora", "this is star"]),
        (["--join", "aurora", "--name", "aurora"], ["The head", "this is aurora"]),
        (["--join", "aurora", "--name", "guest", "--label", "zone"], ["--label wants KEY=VALUE"]),
        (["--join", "aurora", "--name", "guest", "--label", "aurora/node=star"], ["aurora/node", "--name"]),
        (["--join", "aurora", "--name", "my guest"], ["'my guest'", "letters", "--name"]),
    ],
)
def test_a_start_that_contradicts_the_file_is_refused_in_one_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(described(aurora=ELSEWHERE, star=HERE)))
    result = CliRunner().invoke(app, ["node", "start", "--config", str(file), *arguments])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    for word in words:
        assert word in line


def test_a_signal_that_whoever_started_this_has_it_ignore_stays_ignored() -> None:
    """`nohup aurora-cli node start`: also the Ray that it turns into must outlive the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_interrupt():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
