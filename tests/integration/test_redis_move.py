"""The operator moves the primary of the chat's Redis: nothing acknowledged is lost, and whatever goes wrong, writes go on."""

import asyncio
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml
from typer.testing import CliRunner

from cluster import redis_primary
from cluster.cli import app as cli
from cluster.failures import LifecycleError
from cluster.redis_handover import Handover
from cluster.redis_status import place_of
from tests.drills.loopback_kills import stored
from tests.support.redis_process import RedisProcess
from tests.support.redis_trio import RedisTrio
from tests.support.stack import Stack
from tests.support.turn_tools import new_turn, store
from tests.support.waiting import until

pytestmark = pytest.mark.integration
MOVES = 3
WORKERS = 8


@pytest.fixture
def cluster_file(trio: RedisTrio, tmp_path: Path) -> Path:
    """A cluster whose chat has this Redis."""
    path = tmp_path / "cluster.yaml"
    content = {
        "name": "moving",
        "head": "star",
        "nodes": {"star": {"address": "127.0.0.1", "control_redis": True}},
        "serve_config": "lab.yaml",
        "redis": {"url": trio.url},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def move(cluster_file: Path, *more: str) -> tuple[int, str]:
    """Type `aurora-cli redis move`; returns its exit status and what it said."""
    done = CliRunner().invoke(cli, ["redis", "move", "--config", str(cluster_file), *more])
    return done.exit_code, " ".join(done.output.split())


def at(server: RedisProcess) -> str:
    return f"127.0.0.1:{server.port}"


def replication(server: RedisProcess) -> dict[str, Any]:
    with server.client() as client:
        return dict(client.info("replication"))


def promised(trio: RedisTrio) -> Handover:
    handover = redis_primary.plan(place_of(trio.url))
    assert handover is not None
    return handover


async def test_what_was_acknowledged_under_load_is_there_after_moves(trio: RedisTrio, cluster_file: Path) -> None:
    acknowledged: dict[str, list[object]] = {}
    done = asyncio.Event()
    async with (
        Stack(trio.url, replicas=1) as stack,
        stack.serving() as base,
        httpx.AsyncClient(base_url=base, timeout=60) as http,
    ):

        async def ask(worker: int) -> None:
            number = 0
            while not done.is_set():
                number += 1
                body = {
                    "client_id": f"client{worker}_{number}",
                    "message": f"Remember {worker} {number}",
                    "options": {"words": 2},
                }
                answer = await http.post("/api/chat", json=body)
                if answer.status_code == 200:
                    said = answer.json()
                    acknowledged[said["conversation_id"]] = [body["message"], said["response"]]

        async with asyncio.TaskGroup() as tasks:
            for worker in range(WORKERS):
                tasks.create_task(ask(worker))
            for _ in range(MOVES):
                before = len(acknowledged)
                await until(lambda before=before: len(acknowledged) > before + WORKERS, 20)  # type: ignore[misc]
                status, said = await asyncio.to_thread(move, cluster_file)
                assert status == 0, said
                assert "Nothing was lost" in said
            before = len(acknowledged)
            await until(lambda: len(acknowledged) > before + WORKERS, 20)
            done.set()
    primary = next(server for server in trio.servers if at(server) == redis_primary.where(place_of(trio.url)))
    lost = {conversation: said for conversation, said in acknowledged.items() if stored(primary, conversation) != said}
    assert lost == {}, f"{len(lost)} of {len(acknowledged)}"
    for server in trio.servers:
        with server.client() as client:
            assert client.config_get("replica-priority") == {"replica-priority": "100"}


def test_it_goes_where_it_was_told_and_says_so_where_it_is_there_already(trio: RedisTrio, cluster_file: Path) -> None:
    target = trio.replicas[1]
    status, said = move(cluster_file, "--to", at(target))
    assert status == 0, said
    assert f"moves from {at(trio.primary)} to {at(target)}" in said
    assert [sentinel.primary() for sentinel in trio.sentinels] == [target.port] * 3
    assert replication(trio.primary)["master_port"] == target.port
    status, said = move(cluster_file, "--to", at(target))
    assert status == 0, said
    assert f"is on {at(target)} already" in said
    status, said = move(cluster_file, "--to", "127.0.0.1:1")
    assert status == 1
    assert "cannot take over now" in said


async def test_with_no_replica_that_keeps_up_it_is_refused_and_no_write_waits(trio: RedisTrio, cluster_file: Path) -> None:
    trio.freeze_replicas()
    await until(lambda: replication(trio.primary)["slave0"]["lag"] > 3 < replication(trio.primary)["slave1"]["lag"], 20)
    status, said = await asyncio.to_thread(move, cluster_file)
    assert status == 1
    assert "No replica of the chat's Redis can take over now" in said
    assert "nothing was moved, no write waited" in said
    told = replication(trio.primary)
    assert (told["role"], told["master_failover_state"]) == ("master", "no-failover")
    trio.thaw_replicas()


async def test_a_replica_that_does_not_catch_up_changes_nothing(trio: RedisTrio) -> None:
    handover = promised(trio)
    target = next(server for server in trio.servers if at(server) == handover.new)

    def freeze_once_writes_wait(said: str) -> None:
        if said.startswith("writes wait"):
            target.freeze()

    with pytest.raises(LifecycleError, match=r"did not catch up.*nothing was moved, writes go on"):
        await asyncio.to_thread(handover.carry_out, freeze_once_writes_wait)
    async with store(trio.url, replicas=1) as writing:
        assert (await writing.turns.begin(new_turn())).message_seq == 1
    target.thaw()
    assert [sentinel.primary() for sentinel in trio.sentinels] == [trio.primary.port] * 3
    await until(lambda: replication(target)["master_link_status"] == "up", 20)
    await until(lambda: replication(trio.primary)["slave0"]["lag"] <= 1 >= replication(trio.primary)["slave1"]["lag"], 20)
    promised(trio)
    with target.client() as client:
        assert client.config_get("replica-priority") == {"replica-priority": "100"}, "what was left there is put right"


async def test_writes_go_on_by_themselves_where_the_mover_dies_halfway(trio: RedisTrio, cluster_file: Path) -> None:
    async with store(trio.url, replicas=1, patience_s=40) as writing:
        kept = new_turn()
        await writing.turns.begin(kept)
        await asyncio.to_thread(_kill_a_mover_halfway, trio.primary, cluster_file)
        begun = time.monotonic()
        await writing.turns.begin(new_turn())
        print(f"\nwrites went on {time.monotonic() - begun:.1f} s after the mover's death")
    await until(lambda: len({sentinel.primary() for sentinel in trio.sentinels}) == 1, 20)
    primary = next(server for server in trio.servers if server.port == trio.sentinels[0].primary())
    with primary.client() as client:
        assert client.exists(f"aurora:turn:{kept.turn_id}")
    await until(lambda: sum(replication(server).get("master_link_status") == "up" for server in trio.servers) == 2, 40)


def _kill_a_mover_halfway(primary: RedisProcess, cluster_file: Path) -> None:
    """Kill -9 it as soon as writes wait at `primary`, or it is a primary no more."""
    command = [sys.executable, "-m", "cluster", "redis", "move", "--config", str(cluster_file)]
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as mover, primary.client() as client:
        try:
            while time.monotonic() < deadline:
                with suppress(redis.ConnectionError):  # the mover cuts everybody off there
                    said = client.info("replication")
                    if said["role"] != "master" or said["master_failover_state"] != "no-failover":
                        return
                assert mover.poll() is None, mover.stdout.read() if mover.stdout else ""
            raise AssertionError("the mover did not begin")
        finally:
            mover.kill()


def test_without_sentinels_that_answer_nothing_is_begun(trio: RedisTrio, cluster_file: Path) -> None:
    for sentinel in trio.sentinels:
        sentinel.kill()
    status, said = move(cluster_file)
    assert status == 1
    assert "No Sentinel answers that knows 'aurora'" in said
    cluster_file.write_text(cluster_file.read_text().replace(trio.url, trio.primary.url))
    status, said = move(cluster_file)
    assert status == 1
    assert "has no Sentinels" in said
