"""Any node may die and the answer arrives; one that comes back, or is new, serves. The drills do the same by the hundred.

The last here, as they leave the lab as it happens to be.
"""

import asyncio
import itertools
import sys
import threading
import time

import httpx
import pytest

from cluster.lab import Lab, places
from cluster.settings import PROJECT_ROOT
from serve_app.client import Takeover
from tests.lab.conftest import SETTLED_S
from tests.support.clients import Device
from tests.support.lab import Nodes, client_network, get, say, served_by
from tests.support.serving import Asked, undisturbed
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

SLOW: dict[str, object] = {"words": 300, "words_per_second": 30}
"""An answer of ten seconds: whatever is killed meanwhile is noticed before it would have ended."""

SHORT: dict[str, object] = {"words": 60, "words_per_second": 30}

ANSWERED_S = 90.0


def report(capsys: pytest.CaptureFixture[str], what: str, asked: Asked) -> None:
    with capsys.disabled():
        print(f"\n  {what}: pause {asked.gap():.2f} s, reconnects {len(asked.lost)}, attempts {asked.assembly.attempt}")


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
async def test_a_node_that_is_drained_and_stopped_takes_no_answer_with_it_and_serves_again_once_it_is_started(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its service manager, which in the lab starts everything again, is what starts it."""
    options: dict[str, object] = {"words": 600, "words_per_second": 30}
    async with Asked(Nodes(lab, "vengeance"), "leaver", "Hello there", options, explore=False) as asked:
        await asked.pieces(20)
        node = asked.generated_on()
        command = [sys.executable, "-m", "cluster", "node", "drain", node, "--stop", "--timeout", "3"]
        home, config = places.ray_home(node), f"--config={places.CLUSTER}"
        leaving = await asyncio.to_thread(
            lab.exec, node, ["env", f"--chdir={PROJECT_ROOT}", f"AURORA_HOME={home}", *command, config], timeout=120
        )
        said = " ".join((leaving.stdout + leaving.stderr).split())
        assert leaving.returncode == 0, said
        assert f"{node} is stopped" in said
        await asked.end(ANSWERED_S)
        report(capsys, f"{node} drained, which generated", asked)
        asked.check()
        assert [event.reason for _, event in asked.events if isinstance(event, Takeover)] == ["moved"]

    def serves() -> bool:
        return (node, "serving") in [(each["node"], each["status"]) for each in get(lab.url("aurora"))["nodes"]]

    await until(lambda: served_by(lab.url(node)) == node and serves(), SETTLED_S)
    assert say(lab.url(node), "Hello", "guest")["node"] == node


@pytest.mark.usefixtures("whole")
async def test_an_answer_outlives_the_node_that_generates_it_and_that_node_comes_back(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SLOW, "divergent": True}
    async with Asked(Nodes(lab, "vengeance"), "worker", "Hello there", options, explore=False) as asked:
        await asked.pieces(20)
        victim = asked.generated_on()
        async with Device(lab.url(victim), "plain", proxy=None) as plain:  # of the seed's kind: it waits for one frame
            await plain.chat("And me?", options=SHORT)
            assert await plain.alive() == []
            lab.kill(victim)
            plain.socket.transport.abort()
        await until(lambda: asked.assembly.attempt >= 2, ANSWERED_S)
        lab.start(victim)
        await asked.end(ANSWERED_S)
        report(capsys, f"{victim} killed, which generated", asked)
        asked.check()
        asked.check_stretches()
    async with Device(lab.url("aurora"), "plain", proxy=None) as plain:
        assert (await plain.next())["content"] == await undisturbed("And me?", SHORT), "what ended while it was away"
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
        # The head's own Ray ends where Ray's control Redis was on that node too, and its caretaker has to start.
        await until(lambda node=node: served_by(lab.url(node)), ANSWERED_S)
        page = get(lab.url(node) + path, client_id="keeper")["messages"]
        assert [message["content"] for message in page] == ["Keep this.", kept["response"]]


@pytest.mark.usefixtures("whole")
async def test_every_living_door_answers_while_rays_control_redis_is_away_for_long(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head's Ray ends and cannot start again without it; a node that is started meanwhile cannot join."""
    away, head = lab.control_node, lab.cluster.head
    other = next(node for node in lab.nodes if node not in (away, head, lab.redis_primary()))

    async def answered_for(node: str) -> bool:
        """By its caretaker: the HAProxy of a Ray that ends sends on to the others, too, before it goes."""
        return (places.ray_home(node) / "caretaker.pid").exists() and served_by(lab.url(node)) not in ("", node)

    with Watch(lab.url(head)) as watch:
        lab.kill(away)
        await until(lambda: answered_for(head), ANSWERED_S)
        lab.kill(other)
        lab.start(other)
        await until(lambda: answered_for(other), ANSWERED_S)
        for node in set(lab.nodes) - {away}:
            assert say(lab.url(node), "Hello", f"waiting_{node}")["node"] not in (away, head, other)
        closed_s, since = watch.closed_s(), time.monotonic()
        lab.start(away)
        for node in lab.nodes:
            await until(lambda node=node: served_by(lab.url(node)) == node, SETTLED_S)
        assert watch.failures(since) == [], "the head took its door over from its caretaker"
    with capsys.disabled():
        print(f"\n  {away} killed, where Ray's control Redis was: the head's door was closed for {closed_s:.2f} s")
    assert closed_s < 15


class Watch:
    """Somebody who asks at one door all the time, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._asked: list[tuple[float, str]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        with client_network():
            while not self._ended.wait(0.05):
                try:
                    said = str(httpx.get(f"{self._url}/health", timeout=10, trust_env=False).status_code)
                except httpx.TransportError as error:
                    said = type(error).__name__
                self._asked.append((time.monotonic(), said))

    def failures(self, since: float) -> list[str]:
        """What those were told who got no answer."""
        return [said for at, said in self._asked if at > since and said != "200"]

    def closed_s(self) -> float:
        """For how long at most nobody was answered."""
        answered = [at for at, said in self._asked if said == "200"]
        return max(later - sooner for sooner, later in itertools.pairwise([*answered, time.monotonic()]))


@pytest.mark.usefixtures("whole")
async def test_a_machine_that_no_file_names_joins_and_serves_at_its_own_door(lab: Lab) -> None:
    lab.join("newcomer")
    await until(lambda: served_by(lab.url("newcomer")) == "newcomer", SETTLED_S)
    assert say(lab.url("newcomer"), "Hello", "guest")["node"] == "newcomer"
