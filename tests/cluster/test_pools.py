"""Pools over a real Serve application: a server is off, dies in the middle, pulls a model; a release reloads none; a follow-up
comes home.

Two pools of the engine `ollama`, each with a server of its own (a stand-in): `near` is the first choice of every personality,
`far` the next. Both have the same model, so an answer that goes on in the other pool is known to the letter.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.settings import PROJECT_ROOT
from serve_app.chat.events import Started
from tests.cluster.conftest import Home, new_home
from tests.support.ollama_replies import reply
from tests.support.redis_process import free_port
from tests.support.serving import Asked, Serving
from tests.support.stack import personalities
from tests.support.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]
MODEL = "llama3.2"


class Server:
    """A stand-in for Ollama as a process of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, **faults: object) -> None:
        command = [sys.executable, "-m", "tests.support.ollama_server", "--port", str(self.port), "--model", MODEL, *arguments]
        self.process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.control(**faults)
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the stand-in did not start"
                time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def control(self, **faults: object) -> None:
        httpx.post(f"{self.url}/control", json=faults).raise_for_status()

    def shown(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/control").json()
        return answer


def config(near: Server, far: Server, **preferred: tuple[Server, str]) -> dict[str, Any]:
    """Return the configuration of the other cluster tests, with these two pools in place of the scripted one.

    `preferred`: pools before them, each of one replica, with a server and its model.
    """
    base: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "tests" / "cluster" / "survive.yaml").read_text())
    scripted, chat = base["applications"]
    pools = []
    chat["args"]["pools"] = {}
    for name, server, model, replicas in (
        *((name, server, model, 1) for name, (server, model) in preferred.items()),
        ("near", near, MODEL, 1),
        ("far", far, MODEL, 2),
    ):
        pool = {**deepcopy(scripted), "name": name, "args": {"engine": {"kind": "ollama", "model": model, "url": server.url}}}
        pool["deployments"][0]["num_replicas"] = replicas
        pools.append(pool)
        chat["args"]["pools"][name] = {"engine": "ollama", "model": model, "language_model": True}
    return {**base, "applications": [*pools, chat]}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    near, far = Server(), Server()
    try:
        near.start()
        far.start()
        yield near, far
    finally:
        near.kill()
        far.kill()


@dataclass
class First:
    """What `aurora-cli up` said on a machine with an Ollama, and what was answered there."""

    home: Home
    said: str
    about: dict[str, Any]
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def first(servers: tuple[Server, Server]) -> Iterator[First]:
    with new_home(ollama_url=f"127.0.0.1:{servers[0].port}") as home:
        said = home.up()
        about = httpx.get(f"{home.url}/", timeout=10).json()
        yield First(home, said, about, ask(home, "first", "Hello there"))


@pytest.fixture(scope="module")
def home(first: First, servers: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The same Aurora, with the two pools instead."""
    deploy(first.home, config(*servers), tmp_path_factory.mktemp("pools"))
    return first.home


def deploy(home: Home, described: dict[str, Any], folder: Path) -> str:
    """Have Serve run what is `described`, out of `folder`; return what was said, in one line."""
    (folder / "serve.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(PROJECT_ROOT / "configs")
    result = home.run("deploy", str(folder / "serve.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr
    return " ".join(result.stdout.split())


@pytest.fixture
async def serving(home: Home, servers: tuple[Server, Server]) -> Serving:
    for server in servers:
        if server.process is None:
            server.start()
        server.control(tokens_per_second=None)
    serving = Serving(home.url, home.record.dashboard_url, home.record.redis_url)
    await until(lambda: ready(home) == {"near": 1, "far": 2} and all_running(serving), timeout=90)
    return serving


def all_running(serving: Serving) -> bool:
    """Whether Serve, too, has noticed that all are well."""
    answer = httpx.get(f"{serving.dashboard_url}/api/serve/applications/", headers={"Accept": "application/json"}, timeout=20)
    return all(application["status"] == "RUNNING" for application in answer.json()["applications"].values())


def ready(home: Home) -> dict[str, int]:
    """How many replicas of each pool can generate, as users are told."""
    pools = httpx.get(f"{home.url}/api/pools", timeout=10).json()["pools"]
    return {each["pool"]: sum(replica["status"] == "ready" for replica in each["replicas"]) for each in pools}


def undisturbed(message: str) -> str:
    """What the model says to a message of a new conversation with Robbie."""
    return reply(
        f"{MODEL}:latest",
        [{"role": "system", "content": personalities().get("robbie").system}, {"role": "user", "content": message}],
    )


def ask(home: Home, client: str, message: str, **more: Any) -> dict[str, Any]:
    answer = httpx.post(f"{home.url}/api/chat", json={"client_id": client, "message": message, **more}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def told(home: Home, pool: str) -> list[dict[str, Any]]:
    """What the replicas of a pool tell of themselves."""
    pools = httpx.get(f"{home.url}/api/pools", timeout=10).json()["pools"]
    return next((each["replicas"] for each in pools if each["pool"] == pool), [])


def answered_at_once(home: Home, client: str, pool: str) -> None:
    """Make sure that `pool` answers, at the first attempt, and that nobody waits for another one."""
    begun = time.monotonic()
    answers = [ask(home, f"{client}{n}", "Hello") for n in range(5)]
    assert {(answer["pool"], answer["attempt"]) for answer in answers} == {(pool, 1)}
    assert time.monotonic() - begun < 5, "no timeout is paid"


def pids(serving: Serving, deployment: str) -> dict[str, int]:
    return {replica.replica_id: replica.pid for replica in serving.replicas(deployment)}


def test_up_uses_the_ollama_of_the_machine_and_says_so(first: First) -> None:
    assert f"its model {MODEL}:latest speaks" in " ".join(first.said.split())
    assert first.about["engine"] == f"ollama, {MODEL}:latest"
    assert first.answer["response"] == undisturbed("Hello there")
    assert (first.answer["pool"], first.answer["model"]) == ("ollama", f"{MODEL}:latest")


async def test_kill_9_of_the_ollama_server_in_the_middle_is_a_pause_and_the_other_pool_goes_on_to_the_letter(
    serving: Serving, home: Home, servers: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    near, far = servers
    for server in servers:
        server.control(tokens_per_second=10)
    async with Asked(serving, "server_dies", "Hello there", {}) as asked:
        await asked.pieces(10)
        near.kill()
        assert await asked.end() == undisturbed("Hello there")
        asked.check()
        assert asked.assembly.attempt == 2, "the fault did not hit"
        end = asked.assembly.end
        assert end is not None
        assert (end.pool, end.model) == ("far", MODEL)
        with capsys.disabled():
            print(f"\n  Ollama killed: gap {asked.gap():.2f} s")
    # While it is away nobody pays for it; once it is back it is the first choice again.
    await until(lambda: ready(home)["near"] == 0, timeout=30)
    far.control(tokens_per_second=None)
    answered_at_once(home, "away", "far")
    near.start()
    await until(lambda: ready(home)["near"] == 1, timeout=90)
    await until(lambda: ask(home, f"back{time.monotonic_ns()}", "Hello")["pool"] == "near", timeout=10)


async def test_stopping_a_turn_stops_the_generation_behind_it_within_a_second(
    serving: Serving, home: Home, servers: tuple[Server, Server]
) -> None:
    near, _ = servers
    near.control(tokens_per_second=2)
    async with Asked(serving, "stops", "Tell me everything", {}) as asked:
        await asked.pieces(2)
        assert near.shown()["live"] == 1
        turn_id = asked.events[0][1].turn_id
        async with httpx.AsyncClient(base_url=home.url, timeout=10) as http:
            assert (await http.delete(f"/api/turns/{turn_id}", params={"client_id": "stops"})).is_success
        stopped = time.monotonic()
        await until(lambda: near.shown()["live"] == 0, timeout=1.0)
        assert time.monotonic() - stopped <= 1.0
        await asked.end()
        assert asked.assembly.end is not None
        assert asked.assembly.end.type == "stopped"


async def test_a_follow_up_goes_to_the_replica_that_answered_before(
    serving: Serving, home: Home, servers: tuple[Server, Server]
) -> None:
    near, _ = servers
    near.kill()
    await until(lambda: ready(home)["near"] == 0, timeout=30)
    await until(lambda: ask(home, f"gone{time.monotonic_ns()}", "Hello")["attempt"] == 1, timeout=10)
    at_home = 0
    for n in range(6):
        used: list[str] = []
        for question in ("Hello", "And then?", "And after that?"):
            async with Asked(serving, f"warm{n}", question, {}) as asked:
                await asked.end()
                used.append(next(event for _, event in asked.events if isinstance(event, Started)).replica)
        at_home += sum(replica == used[0] for replica in used[1:])
    # Preferred, not more: where Serve finds no word of that replica's queue in 0.1 s, on a busy machine, it takes the other one.
    assert at_home >= 10, f"{at_home} of 12; by chance, 10 or more would be 1 in 50"


async def test_a_new_release_of_the_chat_or_of_a_personality_reloads_no_model(
    serving: Serving, home: Home, servers: tuple[Server, Server], tmp_path: Path
) -> None:
    engines, chats = pids(serving, "Inference"), pids(serving, "PersonalityRouter")
    loads = [server.shown()["loads"] for server in servers]
    changed = config(*servers)
    changed["applications"][-1]["args"]["turns"] = {"deadline_s": 600}
    await asyncio.to_thread(deploy, home, changed, tmp_path)
    await until(lambda: not set(pids(serving, "PersonalityRouter")) & set(chats), timeout=90)
    assert pids(serving, "Inference") == engines, "the pools did not notice"
    assert [server.shown()["loads"] for server in servers] == loads
    assert ask(home, "released", "Hello")["response"] == undisturbed("Hello")


async def test_status_shows_what_every_replica_of_a_pool_holds(serving: Serving, home: Home) -> None:
    def pools() -> list[dict[str, str]]:
        return [line for line in json.loads(home.run("status", "--json").stdout) if line["name"].startswith("pool ")]

    lines = await until(
        lambda: found if len(found := pools()) == 3 else None, timeout=20
    )  # one that was replaced is listed a while
    assert sorted(line["name"] for line in lines) == ["pool far", "pool far", "pool near"]
    assert all(line["state"] == "running" and f"{MODEL} loaded" in line["note"] for line in lines), lines


@dataclass
class Preferred:
    """Two pools before the others, as they are when they are deployed: the server of `pc` is off, that of `laptop` pulls."""

    pc: Server
    laptop: Server
    said: str
    """What `aurora-cli deploy` said."""


@pytest.fixture(scope="module")
def preferred(home: Home, servers: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preferred]:
    """The last configuration of this file: the tests before want to be alone with their two pools."""
    pc, laptop = Server(), Server()
    try:
        laptop.start("--library", "gemma3", pull_hangs_at=5)
        described = config(*servers, pc=(pc, MODEL), laptop=(laptop, "gemma3"))
        yield Preferred(pc, laptop, deploy(home, described, tmp_path_factory.mktemp("preferred")))
    finally:
        pc.kill()
        laptop.kill()


async def test_a_preferred_machine_that_is_off_at_the_deploy_is_used_once_it_is_on_and_again_after_it_was_off(
    home: Home, preferred: Preferred
) -> None:
    pc = preferred.pc
    assert re.search(f"Pool pc is not there yet: [^–]*{re.escape(pc.url)}", preferred.said)
    [waits] = await until(lambda: told(home, "pc"), timeout=30)
    assert waits["status"] == "starting"
    assert pc.url in waits["note"]
    answered_at_once(home, "off", "near")
    # Time for the three failures that Serve allows, each a start of a replica in a process of its own.
    await asyncio.sleep(15)
    assert [each["replica"] for each in told(home, "pc")] == [waits["replica"]]
    await asyncio.to_thread(pc.start)
    await until(lambda: ready(home)["pc"] == 1, timeout=30)
    await until(lambda: ask(home, f"on{time.monotonic_ns()}", "Hello")["pool"] == "pc", timeout=10)
    # It goes off again: Serve replaces the replica, and the new one waits, too.
    pc.kill()
    await until(lambda: [each["replica"] for each in told(home, "pc")] not in ([], [waits["replica"]]), timeout=90)
    await until(lambda: {each["status"] for each in told(home, "pc")} == {"starting"}, timeout=30)
    answered_at_once(home, "off_again", "near")
    await asyncio.to_thread(pc.start)
    await until(lambda: ready(home)["pc"] == 1, timeout=60)
    await until(lambda: ask(home, f"on_again{time.monotonic_ns()}", "Hello")["pool"] == "pc", timeout=10)


async def test_a_pull_is_shown_by_deploy_and_status_while_others_answer_and_goes_on_after_the_server_died(
    home: Home, preferred: Preferred
) -> None:
    preferred.pc.kill()
    await until(lambda: ready(home)["pc"] == 0, timeout=30)
    laptop = preferred.laptop
    assert "Pool laptop is not there yet: pulling gemma3: 40 %" in preferred.said

    def shown() -> tuple[str, str]:
        lines = json.loads(home.run("status", "--json").stdout)
        [line] = [line for line in lines if line["name"] == "pool laptop"]
        return line["state"], line["note"]

    # Now and then a pull that stands still for 20 s is given up, and begun again.
    await until(lambda: shown() == ("starting", "ollama, gemma3 not loaded, 0 of 4 busy, pulling gemma3: 40 %"), timeout=30)
    await until(lambda: ask(home, f"gone{time.monotonic_ns()}", "Hello")["attempt"] == 1, timeout=10)
    answered_at_once(home, "pulling", "near")
    laptop.kill()
    await until(lambda: any("could not be pulled" in each["note"] for each in told(home, "laptop")), timeout=30)
    await asyncio.to_thread(laptop.start, "--library", "gemma3")
    await until(lambda: ready(home)["laptop"] == 1, timeout=30)
    await until(lambda: ask(home, f"pulled{time.monotonic_ns()}", "Hello")["pool"] == "laptop", timeout=10)
