"""`aurora-cli lab status`, the same as `aurora-cli status` of a cluster: what is there, and what a fault does to it."""

import json

import pytest
from typer.testing import CliRunner

from cluster.lab import Lab
from cluster.lab.cli import app
from cluster.lab.status import look
from tests.support.lab import say
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("whole")
async def test_status_shows_every_node_replica_and_redis_and_a_frozen_node_as_frozen(lab: Lab) -> None:
    say(lab.url("star"), "Hello", "status")
    status = look(lab)
    nodes = {node.name: node for node in status.nodes}
    assert {name: nodes[name].state for name in lab.nodes} == dict.fromkeys(lab.nodes, "running")
    assert [name for name, node in nodes.items() if node.head] == [lab.cluster.head]
    for name in lab.nodes:
        assert nodes[name].replicas["chat/Ingress"] == 1
        assert nodes[name].latency_ms is not None
    assert status.head == "running"
    assert {deployment.name for deployment in status.deployments} == {
        "chat/Ingress",
        "chat/PersonalityRouter",
        "scripted/Inference",
    }
    assert sorted(server.state for server in status.redis.servers) == ["primary", "replica", "replica"]
    assert {sentinel.primary for sentinel in status.redis.sentinels} == {status.redis.primary}
    assert status.redis.live_turns == 0
    assert status.serves

    victim = next(name for name in lab.nodes if name not in (lab.cluster.head, lab.control_node, lab.redis_primary()))
    lab.freeze(victim)
    try:
        frozen = {node.name: node for node in look(lab).nodes}[victim]
        assert (frozen.state, frozen.latency_ms) == ("frozen", None)
        shown = CliRunner().invoke(app, ["status", "--json"])
        assert shown.exit_code == 0, shown.output
        assert {node["name"]: node["state"] for node in json.loads(shown.output)["nodes"]}[victim] == "frozen"
    finally:
        lab.heal(victim)
    await until(lambda: {node.name: node.state for node in look(lab).nodes}[victim] == "running", 30)
