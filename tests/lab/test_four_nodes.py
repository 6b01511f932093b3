"""Four nodes: every one serves the same chat at its own door, and whoever does not fit is refused."""

import json
import sys

import httpx
import pytest
import yaml
from rich.console import Console

from cluster.failures import LifecycleError
from cluster.lab import Lab, places
from cluster.lab.up import bring_up
from cluster.progress import Progress
from tests.support.clients import Device, check_whole
from tests.support.lab import get, say, served_by
from tests.support.serving import undisturbed
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

# All four there


@pytest.mark.usefixtures("whole")
async def test_every_node_serves_at_its_own_door_and_knows_all_the_others(lab: Lab) -> None:
    everybody = {node: lab.url(node) for node in lab.nodes}
    for node, url in everybody.items():
        assert say(url, "Hello", f"door_{node}")["node"] == node
        await until(lambda url=url: {each["node"]: each["url"] for each in get(url)["nodes"]} == everybody, 20)


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
