"""Real load balancers with the printed configurations: nothing is buffered, and a node that dies costs nobody an answer."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed

from cluster.balancer import backends as found
from cluster.balancer import render
from cluster.cli import app
from serve_app.api.body_limit import BODY_BYTES
from serve_app.chat.nodes import NodeStatus
from tests.support.balancer import PROGRAMS, answers, backends, balancer, check_command, written
from tests.support.clients import Device, read_sse
from tests.support.nodes import Node, cluster
from tests.support.redis_process import RedisProcess
from tests.support.serving import undisturbed
from tests.support.waiting import until

pytestmark = pytest.mark.integration

SLOW: dict[str, object] = {"words": 60, "words_per_second": 60}
USERS, ROUNDS = 12, 3
each_program = pytest.mark.parametrize("program", PROGRAMS)


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[list[Node]]:
    """Three nodes over one Redis."""
    async with cluster(redis_server.url) as running:
        yield running


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "aurora.crt", folder / "aurora.key"
    openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    subprocess.run([*openssl.split(), "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@each_program
def test_the_program_itself_accepts_its_configuration(program: str, tls: bool, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path) if tls else (None, None)
    if program == "haproxy" and certificate and key:
        certificate.write_text(certificate.read_text() + key.read_text())
    three = [found.Backend(f"node-{n}", f"127.0.0.{n}", 8000, draining=n == 2) for n in range(1, 4)]
    config = written(program, three, render.Front(8443, certificate, key), tmp_path)

    done = subprocess.run(check_command(program, config), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[warn" not in (done.stdout + done.stderr).lower()


def test_the_buffers_hold_the_largest_body() -> None:
    assert render.BODY_BYTES == BODY_BYTES < render.BUFFER_BYTES


async def test_the_command_prints_the_cluster_as_it_is(nodes: list[Node]) -> None:
    await nodes[1].stack.presence.say(NodeStatus.DRAINING)

    async def told() -> bool:
        async with httpx.AsyncClient() as http:
            known = (await http.get(f"{nodes[0].url}/")).json()["nodes"]
        return [node["status"] for node in known] == ["serving", "draining", "serving"]

    await until(told)
    printed = await asyncio.to_thread(CliRunner().invoke, app, ["lb", "nginx", "--from", nodes[0].url, "--listen", "8080"])

    assert printed.exit_code == 0, printed.output
    servers = [line.split() for line in printed.output.splitlines() if line.strip().startswith("server 127.0.0.1:")]
    assert [server[1] for server in servers] == [backend.address for backend in backends(nodes)]
    assert [server[2] for server in servers] == ["max_fails=2", "down;", "max_fails=2"]
    assert "listen 8080;" in printed.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nginx", "--cluster", "nowhere.yaml"], "Cannot read the cluster file"),
        (["caddy", "--from", "http://127.0.0.1:9"], "Nobody answers at http://127.0.0.1:9"),
        (["nginx", "--cluster", "a", "--from", "b"], "not both"),
        (["nginx", "--tls", "a.pem"], "--tls-key"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], says: str) -> None:
    told = CliRunner().invoke(app, ["lb", *arguments])
    assert told.exit_code == 1
    assert says in told.output


@each_program
async def test_server_sent_events_pass_piece_by_piece(nodes: list[Node], program: str, tmp_path: Path) -> None:
    with balancer(program, backends(nodes), tmp_path) as url:
        await until(lambda: answers(url), 20)
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            body = {"message": "Hello", "client_id": "ada", "personality": "robbie", "stream": True, "options": SLOW}
            async with http.stream("POST", "/api/chat", json=body) as response:
                events = read_sse(response)
                async for event in events:
                    if event.event == "piece":
                        turn = await nodes[0].stack.turns.read(event.data["turn_id"])
                        assert turn.end is None, "the first piece came when all was said"
                        break
                rest = [event async for event in events]
        assert rest[-1].data["content"] == await undisturbed("Hello", SLOW)


@each_program
async def test_a_websocket_passes_piece_by_piece(nodes: list[Node], program: str, tmp_path: Path) -> None:
    with balancer(program, backends(nodes), tmp_path) as url:
        await until(lambda: answers(url), 20)
        async with Device(url, "ada", proxy=None) as device:
            await device.chat("Hello", personality="robbie", stream=True, options=SLOW)
            first = (await device.until("piece"))[-1]
            turn = await nodes[0].stack.turns.read(first["turn_id"])
            assert turn.end is None, "the first piece came when all was said"
            assert (await device.until("done"))[-1]["content"] == await undisturbed("Hello", SLOW)


class Users:
    """People with curl: they send no key, and try nothing twice."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.failed: list[str] = []
        self.texts: list[str] = []
        self.under_way = 0

    async def one(self, number: int) -> None:
        """Ask, one message after the other, each as a client of its own."""
        for again in range(ROUNDS):
            self.under_way += 1
            try:
                answer = await self.http.post("/api/chat", json=question(f"user_{number}_{again}"))
                self.texts.append(answer.raise_for_status().json()["response"])
            except httpx.HTTPError as error:
                self.failed.append(repr(error))
            self.under_way -= 1

    async def check_answered(self, number: int, node: Node) -> None:
        """So many of them got every answer, whole, and no message was answered twice."""
        assert self.failed == []
        assert self.texts == [await undisturbed("Hello", SLOW)] * number * ROUNDS
        for client_id in (f"user_{user}_{again}" for user in range(number) for again in range(ROUNDS)):
            assert len(await node.stack.turns.recent_turns(client_id)) == 1, "answered twice"


@contextlib.asynccontextmanager
async def users_of(url: str) -> AsyncIterator[Users]:
    await until(lambda: answers(url), 20)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        yield Users(http)


def question(client_id: str, **options: object) -> dict[str, object]:
    return {"message": "Hello", "client_id": client_id, "personality": "robbie", "options": options or SLOW}


@pytest.mark.alone
@pytest.mark.parametrize(("program", "fault"), [("haproxy", "killed"), ("nginx", "killed"), ("haproxy", "frozen")])
async def test_users_see_no_failed_request_when_a_node_goes(nodes: list[Node], program: str, fault: str, tmp_path: Path) -> None:
    with balancer(program, backends(nodes), tmp_path) as url:
        async with users_of(url) as users:
            asking = [asyncio.create_task(users.one(number)) for number in range(USERS)]
            await until(lambda: users.under_way == USERS and len(nodes[1].stack.pool.runs) > 0, 10)
            if fault == "killed":
                await nodes[1].door.kill()
            else:
                nodes[1].door.freeze()
            await asyncio.gather(*asking)
            await users.check_answered(USERS, nodes[0])


@pytest.mark.alone
@pytest.mark.parametrize("program", ["haproxy", "nginx"])
async def test_users_see_no_failed_request_when_two_of_four_nodes_die_at_once(
    redis_server: RedisProcess, program: str, tmp_path: Path
) -> None:
    """Neither those who wait at them, nor those who come before the balancer has noticed."""
    async with cluster(redis_server.url, ("aurora", "star", "vengeance", "iceland")) as nodes:
        first, *_, last = nodes
        with balancer(program, backends(nodes), tmp_path) as url:
            async with users_of(url) as users:
                asking = [asyncio.create_task(users.one(number)) for number in range(USERS)]
                await until(lambda: users.under_way == USERS and first.stack.pool.runs and last.stack.pool.runs, 10)
                await asyncio.gather(first.door.kill(), last.door.kill())
                asking += [asyncio.create_task(users.one(number)) for number in range(USERS, 2 * USERS)]
                await asyncio.gather(*asking)
                await users.check_answered(2 * USERS, nodes[1])


async def test_haproxy_asks_nodes_that_are_too_busy_for_its_checks_when_there_are_no_others(
    nodes: list[Node], tmp_path: Path
) -> None:
    for node in nodes:
        node.door.swallow = lambda chunk: b"" if b'"status":"healthy"' in chunk else chunk
    with balancer("haproxy", backends(nodes), tmp_path) as url:
        await until(lambda: "Running on backup" in (tmp_path / "haproxy.log").read_text(), 20)
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
            answer = await http.post("/api/chat", json=question("ada", words=3))
        assert answer.raise_for_status().json()["response"] == await undisturbed("Hello", {"words": 3})


async def test_caddy_leaves_a_killed_node_and_no_reader_notices(nodes: list[Node], tmp_path: Path) -> None:
    """What it cannot do is send a POST again that was with the node: its sender must."""
    with balancer("caddy", backends(nodes), tmp_path) as url:
        await until(lambda: answers(url), 20)
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
            reading = [asyncio.create_task(http.get("/api/personalities")) for _ in range(30)]
            await nodes[1].door.kill()
            reading += [asyncio.create_task(http.get("/api/personalities")) for _ in range(30)]
            assert {answer.status_code for answer in await asyncio.gather(*reading)} == {200}

            async def asks() -> bool:
                answers = [await http.post("/api/chat", json=question("ada", words=3)) for _ in range(6)]
                return all(answer.status_code == 200 for answer in answers)

            await until(asks, 10)


@pytest.mark.parametrize("program", ["haproxy", "nginx"])
async def test_the_largest_request_survives_the_death_of_its_node(nodes: list[Node], program: str, tmp_path: Path) -> None:
    """Sent whole to one node, held by the balancer, sent again to another: with the key that it was given on the way."""
    first, second = nodes[:2]
    with balancer(program, backends([first, second]), tmp_path) as url:
        await until(lambda: answers(url), 20)

        def dies(node: Node, other: Node) -> Callable[[bytes], bytes]:
            def swallow(chunk: bytes) -> bytes:
                if b"turn_id" not in chunk:
                    return chunk
                other.door.swallow = lambda chunk: chunk
                node.door.cut()
                return b""

            return swallow

        first.door.swallow, second.door.swallow = dies(first, second), dies(second, first)
        escaped = "\\u00e9" * 16_384  # 32 KB of UTF-8, three times as long in JSON escapes
        body = f'{{"message": "{escaped}", "client_id": "ada", "options": {{"words": 20}}, "personality": "robbie"}}'
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
            answer = await http.post("/api/chat", content=body.ljust(BODY_BYTES), headers=headers)

        assert (answer.status_code, len(answer.json()["response"].split())) == (200, 20)
        assert first.door.swallowed + second.door.swallowed > 0, "no answer was lost on the way"
        assert len(await first.stack.turns.recent_turns("ada")) == 1


async def test_haproxy_lets_a_draining_node_finish_and_gives_it_nothing_new(nodes: list[Node], tmp_path: Path) -> None:
    with balancer("haproxy", backends(nodes), tmp_path) as url:
        await until(lambda: answers(url), 20)
        async with Device(url, "ada", proxy=None) as device, httpx.AsyncClient(base_url=url, trust_env=False) as http:
            slow = {"words": 100, "words_per_second": 25}
            await device.chat("Hello", personality="robbie", stream=True, options=slow)
            name = (await device.until("accepted"))[-1]["node"]
            leaving = next(node for node in nodes if node.stack.service.node == name)
            await leaving.stack.presence.say(NodeStatus.DRAINING)

            async def left() -> bool:
                served = {(await http.get("/api/personalities")).json()["node"] for _ in range(2 * len(nodes))}
                return name not in served

            await until(left, 10)
            assert (await device.until("done"))[-1]["content"] == await undisturbed("Hello", slow)


async def test_haproxy_frees_who_is_with_a_frozen_node(nodes: list[Node], tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with balancer("haproxy", backends(nodes), tmp_path) as url:
        await until(lambda: answers(url), 20)
        async with Device(url, "ada", proxy=None, ping_interval=None) as device:
            await device.chat("Hello", personality="robbie", stream=True, options={"words": 200, "words_per_second": 10})
            name = (await device.until("accepted"))[-1]["node"]
            next(node for node in nodes if node.stack.service.node == name).door.freeze()
            at = loop.time()
            with pytest.raises(ConnectionClosed):
                await device.until("done", timeout=20)
            assert loop.time() - at < 5.5
        async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
            served = {(await http.get("/api/personalities")).json()["node"] for _ in range(6)}
        assert served == {node.stack.service.node for node in nodes} - {name}
