"""Four nodes: every one serves, any one may die, the answer arrives. The drills do the same by the hundred."""

import json
import sys
import time

import httpx
import pytest
import yaml
from rich.console import Console

from cluster.failures import LifecycleError
from cluster.lab import Lab, places
from cluster.lab.up import bring_up
from cluster.progress import Progress
from tests.lab.conftest import SETTLED_S
from tests.support.clients import Device, check_whole
from tests.support.lab import Nodes, get, say, served_by
from tests.support.serving import Asked, undisturbed
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

SLOW: dict[str, object] = {"words": 300, "words_per_second": 30}
"""An answer of ten seconds: whatever is killed meanwhile is noticed before it would have ended."""

ANSWERED_S = 90.0


def report(capsys: pytest.CaptureFixture[str], what: str, asked: Asked) -> None:
    with capsys.disabled():
        print(f"\n  {what}: pause {asked.gap():.2f} s, reconnects {len(asked.lost)}, attempts {asked.assembly.attempt}")


# All four there


@pytest.mark.usefixtures("whole")
async def test_every_node_serves_at_its_own_door_and_knows_all_the_others(lab: Lab) -> None:
    for node in lab.nodes:
        assert say(lab.url(node), "Hello", f"door_{node}")["node"] == node
        known = get(lab.url(node))["nodes"]
        assert {each["node"]: each["url"] for each in known} == {each: lab.url(each) for each in lab.nodes}


@pytest.mark.usefixtures("whole")
async def test_what_was_said_at_one_node_is_history_at_every_other(lab: Lab) -> None:
    first = say(lab.url("vengeance"), "My name is Ada.", "historian")
    conversation = first["conversation_id"]
    say(lab.url("iceland"), "And yours?", "historian", conversation_id=conversation)
    path = f"/api/conversations/{conversation}/history"
    pages = [get(lab.url(node) + path, client_id="historian")["messages"] for node in lab.nodes]
    assert [message["role"] for message in pages[0]] == ["user", "assistant"] * 2
    assert pages[0][1]["content"] == first["response"]
    assert all(page == pages[0] for page in pages)


@pytest.mark.usefixtures("whole")
async def test_a_device_at_star_hears_live_what_was_sent_to_vengeance(lab: Lab) -> None:
    async with Device(lab.url("star"), "listener", query="?stream=true", proxy=None) as device:
        await device.alive()
        options = {"words": 40, "words_per_second": 30}
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            body = {"message": "Hello", "client_id": "listener", "personality": "robbie", "options": options}
            asked = http.build_request("POST", f"{lab.url('vengeance')}/api/chat", json={**body, "stream": True})
            answer = await http.send(asked, stream=True)
            started = await device.until("piece")
            heard = [*started, *await device.until("done")]
            await answer.aclose()
    assert (heard[0]["type"], heard[0]["content"], heard[0]["node"]) == ("accepted", "Hello", "vengeance")
    assert check_whole(heard) == await undisturbed("Hello", options)


# Whoever does not fit


def start_again(lab: Lab, node: str, *, home: str, config: str) -> str:
    """Say `node start` on a node that runs, and return the one line by which it refuses."""
    command = ["env", f"AURORA_HOME={home}", sys.executable, "-m", "cluster", "node", "start", "--config", config]
    result = lab.exec(node, command, timeout=60)
    assert result.returncode == 1, result.stdout + result.stderr
    [line] = result.stderr.splitlines()
    return line


@pytest.mark.usefixtures("whole")
async def test_a_node_whose_settings_differ_from_the_heads_is_refused_and_told_which(lab: Lab) -> None:
    described = yaml.safe_load(places.CLUSTER.read_text())
    described |= {"serve_config": str(lab.cluster.serve_config), "port": 8001, "redis": {"durability_replicas": 0}}
    config = places.folder("vengeance") / "differs.yaml"
    config.write_text(json.dumps(described))
    line = start_again(lab, "vengeance", home="/tmp/another-home", config=str(config))
    assert "port: 8001 here, 8000 there" in line
    assert "redis.durability_replicas: 0 here, 1 there" in line
    assert "dashboard" not in line, "that one is alike"
    assert served_by(lab.url("vengeance")) == "vengeance"


@pytest.mark.usefixtures("whole")
async def test_a_second_start_of_a_node_is_refused_and_leaves_the_first_alone(lab: Lab) -> None:
    before = lab.replicas()
    line = start_again(lab, "vengeance", home=str(places.ray_home("vengeance")), config=str(places.CLUSTER))
    assert "runs here already" in line
    assert lab.replicas() == before


def test_a_second_lab_is_refused(lab: Lab) -> None:
    with pytest.raises(LifecycleError, match="A lab is up on this machine"):
        bring_up(Progress(Console()))
    assert "down" not in lab.states().values()


# Faults


@pytest.mark.usefixtures("whole")
async def test_packets_of_a_partitioned_node_vanish_and_a_frozen_one_is_silent_until_they_are_healed(lab: Lab) -> None:
    lab.partition("vengeance")
    with pytest.raises(httpx.ConnectTimeout):
        get(lab.url("vengeance"), timeout=1)
    assert lab.states()["vengeance"] == "partitioned"
    lab.heal("vengeance")
    lab.freeze("vengeance")
    with pytest.raises(httpx.ReadTimeout):
        get(lab.url("vengeance"), timeout=1)
    assert lab.states()["vengeance"] == "frozen"
    lab.heal("vengeance")
    await until(lambda: served_by(lab.url("vengeance")) == "vengeance", 30)


@pytest.mark.usefixtures("whole")
async def test_an_answer_outlives_the_node_that_generates_it_and_that_node_comes_back(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SLOW, "divergent": True}
    async with Asked(Nodes(lab, "vengeance"), "worker", "Hello there", options, explore=False) as asked:
        await asked.pieces(20)
        victim = asked.generated_on()
        lab.kill(victim)
        await until(lambda: asked.assembly.attempt >= 2, ANSWERED_S)
        lab.start(victim)
        await asked.end(ANSWERED_S)
        report(capsys, f"{victim} killed, which generated", asked)
        asked.check()
        asked.check_stretches()
    await until(lambda: served_by(lab.url(victim)) == victim, SETTLED_S)


@pytest.mark.usefixtures("whole")
async def test_an_answer_outlives_the_head_the_chat_goes_on_without_it_and_it_comes_back(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    head = lab.cluster.head
    async with Asked(Nodes(lab, head), "head", "Hello there", SLOW, explore=False) as asked:
        await asked.pieces(20)
        lab.kill(head)
        for node in set(lab.nodes) - {head}:
            assert say(lab.url(node), "Hello", f"headless_{node}")["node"] == node
        await until(lambda: asked.lost, ANSWERED_S)
        lab.start(head)
        assert await asked.end(ANSWERED_S) == await undisturbed("Hello there", SLOW)
        report(capsys, "head killed, at whose door the client was", asked)
        asked.check()
    await until(lambda: served_by(lab.url(head)) == head, SETTLED_S)


@pytest.mark.usefixtures("whole")
async def test_an_answer_outlives_the_node_of_the_redis_primary_and_nothing_acknowledged_is_lost(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    primary = lab.redis_primary()
    kept = say(lab.url(primary), "Keep this.", "keeper")
    async with Asked(Nodes(lab, lab.cluster.head), "primary", "Hello there", SLOW, explore=False) as asked:
        await asked.pieces(20)
        before = time.monotonic()
        lab.kill(primary)
        assert await asked.end(ANSWERED_S) == await undisturbed("Hello there", SLOW)
        report(capsys, f"{primary} killed, where the Redis primary was", asked)
        assert lab.redis_primary() != primary
        asked.check()
        assert asked.events[-1][0] > before, "the fault did not hit"
    path = f"/api/conversations/{kept['conversation_id']}/history"
    for node in set(lab.nodes) - {primary}:
        page = get(lab.url(node) + path, client_id="keeper")["messages"]
        assert [message["content"] for message in page] == ["Keep this.", kept["response"]]


@pytest.mark.usefixtures("among_clients")
async def test_a_machine_that_no_file_names_joins_and_serves_at_its_own_door(lab: Lab) -> None:
    lab.join("newcomer")
    await until(lambda: served_by(lab.url("newcomer")) == "newcomer", SETTLED_S)
    assert say(lab.url("newcomer"), "Hello", "guest")["node"] == "newcomer"
