"""`lab kill` of less than a node: nothing else dies, and what was killed is replaced."""

import pytest
from typer.testing import CliRunner

from cluster.lab import Lab
from cluster.lab.cli import app
from cluster.lab.units import CONTROL, RAY, REDIS, SENTINEL
from tests.lab.conftest import SETTLED_S
from tests.support.lab import say, served_by
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("whole")
async def test_the_redis_primary_dies_alone_its_node_chats_on_and_another_one_becomes_primary(lab: Lab) -> None:
    def units() -> dict[tuple[str, str], int | None]:
        return {(name, unit): each.unit(unit) for name, each in lab.machines.items() for unit in (RAY, REDIS, SENTINEL, CONTROL)}

    node = lab.redis_primary()
    kept = say(lab.url(node), "Remember this", "witness")["conversation_id"]
    before, replicas = units(), set(lab.replicas())
    killed = before[node, REDIS]
    assert killed
    assert lab.kill("redis-primary") == f"the Redis primary on {node}"
    await until(lambda: lab.machines[node].unit(REDIS) != killed)
    answer = say(lab.url(node), "And this", "witness", conversation_id=kept)  # kept by the next primary and a replica of it
    assert (answer["node"], answer["conversation_id"]) == (node, kept)
    assert lab.redis_primary() != node
    await until(lambda: lab.redis_roles()[node].role == "replica", SETTLED_S)  # it is back
    after = units()
    assert [place for place, pid in before.items() if after[place] != pid] == [(node, REDIS)]
    assert set(lab.replicas()) == replicas


@pytest.mark.usefixtures("whole")
async def test_a_replica_dies_alone_and_serve_puts_another_in_its_place(lab: Lab) -> None:
    before = set(lab.replicas())
    [victim] = [each for each in before if (each.application, each.deployment, each.node) == ("chat", "Ingress", "star")]
    typed = CliRunner().invoke(app, ["kill", "replica", "chat/Ingress@star"])
    assert (typed.exit_code, typed.stdout) == (0, "Killed: chat/Ingress on star.\n"), typed.output
    await until(lambda: victim not in lab.replicas())
    await until(lambda: served_by(lab.url("star")) == "star", SETTLED_S)
    after = set(lab.replicas())
    assert before - after == {victim}
    [new] = after - before
    assert (new.application, new.deployment, new.node) == ("chat", "Ingress", "star")
