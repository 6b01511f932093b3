"""The laws over a real Serve application, with processes killed (issue 2, "Must be shown", 1 to 3).

Two replicas of everything on one machine. Every test leaves the application whole.
"""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from cluster.redis_server import executable
from cluster.settings import PROJECT_ROOT
from tests.cluster.conftest import Home, new_home
from tests.support.serving import Asked, Serving, undisturbed
from tests.support.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SLOW: dict[str, object] = {"words": 240, "words_per_second": 30}
"""An eight-second answer: long enough for whatever is killed to come back meanwhile."""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with new_home() as home:
        home.up("--config", str(PROJECT_ROOT / "tests" / "cluster" / "survive.yaml"))
        yield home


@pytest.fixture
async def serving(home: Home) -> Serving:
    serving = Serving(home.url, home.record.dashboard_url, home.record.redis_url)
    await serving.until_whole()
    return serving


def report(capsys: pytest.CaptureFixture[str], what: str, asked: Asked) -> None:
    """Print the gap the client saw, as the issue asks."""
    cuts = [(stretch.attempt, stretch.last) for stretch in asked.assembly.stretches]
    with capsys.disabled():
        print(f"\n  {what}: gap {asked.gap():.2f} s, reconnects {len(asked.lost)}, attempts ending at pieces {cuts}")


@pytest.mark.parametrize("divergent", [False, True], ids=["repeatable", "divergent"])
async def test_kill_9_of_the_generating_replica_is_a_pause_and_nothing_else(
    serving: Serving, capsys: pytest.CaptureFixture[str], divergent: bool
) -> None:
    options = {**SLOW, "divergent": True} if divergent else SLOW
    async with Asked(serving, f"kill_inference_{divergent}", "Hello there", options) as asked:
        await asked.pieces(20)
        victims = [r for r in serving.replicas("Inference") if r.replica_id == asked.running_on()]
        assert len(victims) == 1
        serving.kill(victims)
        text = await asked.end()
        report(capsys, f"inference killed, divergent={divergent}", asked)
        asked.check()
        assert asked.assembly.attempt == 2, "the fault did not hit"
        if divergent:
            asked.check_stretches()
        else:
            assert text == await undisturbed("Hello there", SLOW)


async def test_kill_9_of_every_router_leaves_the_answer_to_finish_by_itself(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Asked(serving, "kill_router", "Hello there", SLOW) as asked:
        await asked.pieces(20)
        serving.kill(serving.replicas("PersonalityRouter"))
        assert await asked.end() == await undisturbed("Hello there", SLOW)
        report(capsys, "routers killed", asked)
        asked.check()
        assert asked.assembly.attempt == 1, "the run should not have noticed"


async def test_kill_9_of_every_ingress_makes_the_client_reconnect_and_resume(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Asked(serving, "kill_ingress", "Hello there", SLOW) as asked:
        await asked.pieces(20)
        serving.kill(serving.replicas("Ingress"))
        assert await asked.end() == await undisturbed("Hello there", SLOW)
        report(capsys, "ingresses killed", asked)
        asked.check()
        assert asked.lost, "the connection should have broken"
        assert asked.assembly.attempt == 1


@pytest.mark.parametrize("divergent", [False, True], ids=["repeatable", "divergent"])
async def test_kill_9_of_inference_router_and_ingress_together_still_brings_the_whole_answer(
    serving: Serving, capsys: pytest.CaptureFixture[str], divergent: bool
) -> None:
    options = {**SLOW, "divergent": True} if divergent else SLOW
    async with Asked(serving, f"kill_all_{divergent}", "Hello there", options) as asked:
        await asked.pieces(20)
        serving.kill([r for name in ("Inference", "PersonalityRouter", "Ingress") for r in serving.replicas(name)])
        text = await asked.end(timeout=120)
        report(capsys, f"all replicas killed, divergent={divergent}", asked)
        asked.check()
        assert asked.assembly.attempt >= 2, "the fault did not hit"
        if divergent:
            asked.check_stretches()
        else:
            assert text == await undisturbed("Hello there", SLOW)


async def test_the_same_idempotency_key_is_attached_during_and_after_a_takeover(serving: Serving) -> None:
    body = {"message": "Hello there", "client_id": "same_key", "personality": "robbie", "options": SLOW}
    headers = {"Idempotency-Key": "once"}
    async with httpx.AsyncClient(base_url=serving.url, timeout=90) as http:
        first = asyncio.create_task(http.post("/api/chat", json=body, headers=headers))
        claimed = str(await until(lambda: serving.redis.get("aurora:idempotency:same_key:once"), 20))
        turn_id = json.loads(claimed)["turn_id"]
        await until(lambda: int(serving.redis.hget(f"aurora:turn:{turn_id}", "seq") or 0) >= 10, 20)
        serving.kill(serving.replicas("Inference"))
        second = asyncio.create_task(http.post("/api/chat", json=body, headers=headers))
        answers = [answer.json() for answer in await asyncio.gather(first, second)]
        answers.append((await http.post("/api/chat", json=body, headers=headers)).json())
    assert {answer["turn_id"] for answer in answers} == {turn_id}
    assert {answer["response"] for answer in answers} == {await undisturbed("Hello there", SLOW)}
    assert answers[0]["attempt"] >= 2, "the fault did not hit"
    assert len(serving.stored_replies(turn_id, answers[0]["conversation_id"])) == 1


async def test_a_client_that_leaves_does_not_take_its_answer_with_it(serving: Serving) -> None:
    body = {"message": "Hello there", "client_id": "leaver", "options": {"words": 60, "words_per_second": 30}}
    async with httpx.AsyncClient(base_url=serving.url) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/api/chat", json=body, timeout=httpx.Timeout(5, read=0.5))
        async with asyncio.timeout(30):
            while True:
                [turn_id] = serving.redis.zrange("aurora:turns:client:leaver", 0, -1)
                turn = (await http.get(f"/api/turns/{turn_id}")).json()
                if turn["state"] != "open":
                    break
                await asyncio.sleep(0.1)
    assert turn["state"] == "done"
    assert len(turn["content"].split()) == 60


async def test_redis_frozen_for_five_seconds_is_a_pause_and_nothing_else(
    serving: Serving, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = home.record.redis.pid  # type: ignore[union-attr]
    async with Asked(serving, "frozen_redis", "Hello there", SLOW) as asked:
        await asked.pieces(20)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(5)  # the fault itself
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await asked.end() == await undisturbed("Hello there", SLOW)
        report(capsys, "Redis frozen for 5 s", asked)
        asked.check()
        assert asked.gap() > 4, "the fault did not hit"


async def test_redis_killed_and_restarted_from_its_append_only_file_is_a_pause_and_nothing_else(
    serving: Serving, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    process = psutil.Process(home.record.redis.pid)  # type: ignore[union-attr]
    restarted = None
    try:
        async with Asked(serving, "killed_redis", "Hello there", SLOW) as asked:
            await asked.pieces(20)
            process.kill()
            await asyncio.sleep(2)  # the fault itself
            restarted = restart_redis(home)
            assert await asked.end() == await undisturbed("Hello there", SLOW)
            report(capsys, "Redis killed, 2 s away", asked)
            asked.check()
            assert asked.gap() > 1.5, "the fault did not hit"
        await serving.until_whole()
    finally:
        if restarted is not None:
            home.adopt(restarted)


def restart_redis(home: Home) -> "subprocess.Popen[bytes]":
    """Start our Redis again as `up` did: nobody else does, on one machine."""
    program, _ = executable()
    port = home.record.redis_url.rsplit(":", 1)[1].partition("/")[0]
    options = f"--bind 127.0.0.1 --port {port} --dir {home.settings.home / 'redis'}"
    command = [program, *options.split(), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    with (home.settings.home / "redis-again.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


async def test_a_poisoned_turn_fails_after_its_tries_and_its_neighbours_are_answered(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    slow: dict[str, object] = {"words": 400, "words_per_second": 20}
    neighbours = [Asked(serving, f"neighbour_{n}", "Hello there", slow) for n in range(6)]
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=serving.url, timeout=120) as http:
        for neighbour in neighbours:
            await neighbour.__aenter__()
        try:
            for neighbour in neighbours:
                await neighbour.pieces(5)
            answer = await http.post("/api/chat", json={"message": "please poison-kill now", "client_id": "poisoner"})
            seconds = time.monotonic() - begun
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "attempts_exhausted"
            turn = (await http.get(f"/api/turns/{answer.json()['error']['turn_id']}")).json()
            assert turn["state"] == "failed"
            assert 3 <= turn["attempt"] <= 4, "three in a row without a new piece, and the first may have left one"
            expected = await undisturbed("Hello there", slow)
            for neighbour in neighbours:
                assert await neighbour.end(timeout=120) == expected
                neighbour.check()
        finally:
            for neighbour in neighbours:
                await neighbour.__aexit__()
    hit = sum(neighbour.assembly.attempt > 1 for neighbour in neighbours)
    with capsys.disabled():
        print(f"\n  poison: failed after {seconds:.1f} s and {turn['attempt']} attempts; {hit} of 6 neighbours were taken over")
    assert hit, "no neighbour was on a replica that died"
