"""How a cluster is, asked of real servers: which nodes answer, who is Redis's primary, and that silence costs seconds only."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import cluster_status, redis_server, redis_status
from cluster.cluster_file import ClusterFile
from cluster.cluster_status import ClusterStatus, NodeStatus
from cluster.failures import LifecycleError
from cluster.redis_status import ChatRedis
from tests.support.redis_process import RedisProcess, free_port
from tests.support.redis_trio import RedisTrio, newest_redis

pytestmark = pytest.mark.integration

HEALTHY = (200, {"status": "healthy", "redis": "ok"})
AWAY = (200, {"status": "degraded", "redis": "away"})
DRAINING = (503, {"error": {"code": "draining"}})
BROKEN = (500, {"error": {"code": "internal"}})


@contextlib.contextmanager
def server(host: str, port: int, pages: dict[str, tuple[int, object]]) -> Iterator[None]:
    """Serve these pages, each a status and an object to be sent as JSON."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            code, content = pages.get(self.path, (404, {}))
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((host, port), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            serving.shutdown()
            thread.join()


def pages(name: str, health: tuple[int, object], nodes: list[dict[str, str]] | None = None) -> dict[str, tuple[int, object]]:
    return {"/health": health, "/": (200, {"node": name, "nodes": nodes or []})}


def replica(address: str, state: str = "RUNNING") -> dict[str, str]:
    return {"node_ip": address, "state": state}


SERVE = {
    "applications": {
        "chat": {
            "deployments": {
                "Ingress": {
                    "status": "UPDATING",
                    "target_num_replicas": 3,
                    "replicas": [replica("127.0.0.1"), replica("127.0.0.2"), replica("127.0.0.3", "STARTING")],
                }
            }
        },
        "scripted": {
            "deployments": {
                "Inference": {
                    "status": "HEALTHY",
                    "target_num_replicas": 2,
                    "replicas": [replica("127.0.0.2"), replica("127.0.0.2")],
                }
            }
        },
    }
}


@pytest.fixture
def server_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    redis = RedisProcess(tmp_path)
    redis.start()
    yield redis
    redis.close()


def cluster(port: int, dashboard: int, redis_url: str, control: str) -> ClusterFile:
    names = ("aurora", "star", "vengeance", "iceland")
    return ClusterFile.model_validate(
        {
            "name": "test",
            "head": "aurora",
            "nodes": {name: {"address": f"127.0.0.{n}"} for n, name in enumerate(names, start=1)},
            "port": port,
            "serve_config": "none.yaml",
            "redis": {"url": redis_url, "durability_replicas": 0},
            "ray": {"redis": control, "dashboard_port": dashboard},
        }
    )


def by_name(status: ClusterStatus) -> dict[str, NodeStatus]:
    return {node.name: node for node in status.nodes}


def test_every_node_is_shown_as_its_own_port_shows_it(server_redis: RedisProcess) -> None:
    port, dashboard = free_port(), free_port()
    newcomer = {"node": "atlas", "url": f"http://127.0.0.5:{port}", "status": "serving"}
    with contextlib.ExitStack() as stack:
        for host, name, health in (
            ("127.0.0.1", "aurora", HEALTHY),
            ("127.0.0.2", "star", DRAINING),
            ("127.0.0.3", "vengeance", BROKEN),
            ("127.0.0.5", "atlas", AWAY),
        ):
            stack.enter_context(server(host, port, pages(name, health, [newcomer])))
        stack.enter_context(server("127.0.0.1", dashboard, {"/api/serve/applications/": (200, SERVE)}))
        status = cluster_status.look(cluster(port, dashboard, server_redis.url, f"127.0.0.1:{server_redis.port}"))
    found = by_name(status)
    states = {"aurora": "running", "star": "draining", "vengeance": "failing", "iceland": "down", "atlas": "degraded"}
    assert {name: node.state for name, node in found.items()} == states
    assert found["aurora"].head
    assert found["aurora"].latency_ms is not None
    assert found["iceland"].latency_ms is None
    assert found["star"].replicas == {"chat/Ingress": 1, "scripted/Inference": 2}
    assert found["vengeance"].replicas == {}
    assert [(d.name, d.running, d.wanted, d.others) for d in status.deployments] == [
        ("chat/Ingress", 2, 3, ["starting"]),
        ("scripted/Inference", 2, 2, []),
    ]
    assert status.head == "running"
    assert status.control_redis == "running"
    assert status.serves


def test_a_port_that_another_nodes_ingress_answers_is_told_from_its_own(server_redis: RedisProcess) -> None:
    port = free_port()
    with server("127.0.0.1", port, pages("star", HEALTHY)):
        status = cluster_status.look(cluster(port, free_port(), server_redis.url, "127.0.0.1:1"))
    assert by_name(status)["aurora"].note == "answered by star"


def test_a_node_that_leaves_is_draining_although_another_nodes_ingress_answers_on_its_port(server_redis: RedisProcess) -> None:
    port = free_port()
    leaving = {"node": "star", "url": f"http://127.0.0.2:{port}", "status": "draining"}
    with server("127.0.0.1", port, pages("aurora", HEALTHY, [leaving])), server("127.0.0.2", port, pages("aurora", HEALTHY)):
        status = cluster_status.look(cluster(port, free_port(), server_redis.url, "127.0.0.1:1"))
    assert (by_name(status)["star"].state, by_name(status)["star"].note) == ("draining", "is leaving")
    assert by_name(status)["aurora"].state == "running"


def test_a_node_that_stays_after_all_is_running_by_its_own_word_whatever_the_others_still_believe(
    server_redis: RedisProcess,
) -> None:
    port = free_port()
    stale = {"node": "star", "url": f"http://127.0.0.2:{port}", "status": "draining"}
    with server("127.0.0.1", port, pages("aurora", HEALTHY, [stale])), server("127.0.0.2", port, pages("star", HEALTHY, [stale])):
        status = cluster_status.look(cluster(port, free_port(), server_redis.url, "127.0.0.1:1"))
    assert (by_name(status)["star"].state, by_name(status)["star"].note) == ("running", "")


def test_without_head_and_redis_it_says_so_and_still_shows_the_nodes(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    with server("127.0.0.2", port, pages("star", AWAY)):
        status = cluster_status.look(cluster(port, nobody, f"redis://127.0.0.1:{nobody}/0", f"127.0.0.1:{nobody}"))
    assert by_name(status)["star"].state == "degraded"
    assert f":{nobody} does not answer" in status.head
    assert status.deployments == []
    assert status.redis.live_turns is None
    assert [server.state for server in status.redis.servers] == ["down"]
    assert status.control_redis == "down"
    assert not status.serves


def test_machines_that_accept_and_say_nothing_cost_seconds(server_redis: RedisProcess) -> None:
    with contextlib.ExitStack() as stack:
        port, dashboard = free_port(), free_port()
        for host, at in [*((f"127.0.0.{n}", port) for n in range(1, 5)), ("127.0.0.1", dashboard)]:
            silent = stack.enter_context(socket.socket())
            silent.bind((host, at))
            silent.listen()
        server_redis.freeze()
        begun = time.monotonic()
        status = cluster_status.look(cluster(port, dashboard, server_redis.url, f"127.0.0.1:{server_redis.port}"))
        assert time.monotonic() - begun < 8
    assert {node.state for node in status.nodes} == {"down"}
    assert status.redis.live_turns is None


def test_live_turns_and_the_last_takeover_are_read_from_the_primary(server_redis: RedisProcess) -> None:
    with server_redis.client() as client:
        client.zadd(redis_status.OPEN_TURNS, {"turn_a": 1, "turn_b": 2})
        last = {
            "at_ms": 1_800_000_000_000,
            "turn_id": "turn_a",
            "pool": "scripted",
            "attempt": 2,
            "from_node": "star",
            "to_node": "iceland",
        }
        client.set(redis_status.LAST_TAKEOVER, json.dumps(last))
    with ThreadPoolExecutor(4) as pool:
        seen = redis_status.look(redis_status.place_of(server_redis.url), (), pool)
    assert seen.live_turns == 2
    assert seen.last_takeover is not None
    assert seen.last_takeover.model_dump() == last
    assert seen.servers[0].state == "primary"
    assert seen.primary == f"127.0.0.1:{server_redis.port}"


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[RedisTrio]:
    trio = RedisTrio(newest_redis(), tmp_path, sentinels=3)
    try:
        trio.start()
        yield trio
    finally:
        trio.close()


def roles(seen: ChatRedis) -> dict[int, str]:
    return {int(server.address.rpartition(":")[2]): server.state for server in seen.servers}


def test_a_replicated_redis_is_shown_with_its_lag_before_and_after_a_failover(trio: RedisTrio) -> None:
    place = redis_status.place_of(trio.url)
    first, others = trio.primary, trio.replicas
    with ThreadPoolExecutor(8) as pool:
        seen = redis_status.look(place, (), pool)
        assert seen.primary == f"127.0.0.1:{first.port}"
        assert roles(seen) == {first.port: "primary", **{other.port: "replica" for other in others}}
        assert [sentinel.primary for sentinel in seen.sentinels] == [seen.primary] * 3
        assert all(server.linked for server in seen.servers)
        assert all((server.behind_bytes or 0) < 1_000 for server in seen.servers)
        assert [server.behind_bytes is None for server in seen.servers].count(True) == 1, "the primary is behind nobody"
        assert seen.live_turns == 0

        first.kill()
        trio.until_failed_over()
        seen = redis_status.look(place, (), pool)
    assert seen.primary == f"127.0.0.1:{trio.primary.port}"
    assert roles(seen)[trio.primary.port] == "primary"
    assert roles(seen)[first.port] == "down"
    assert seen.live_turns == 0


def test_aurora_on_one_machine_takes_a_redis_behind_sentinels_and_says_what_is_wrong_with_one(trio: RedisTrio) -> None:
    assert redis_server.check(trio.url) == redis_server.program_version(newest_redis())
    with pytest.raises(LifecycleError, match="knows nobody: start them, or correct AURORA_REDIS_URL"):
        redis_server.check(trio.url.rpartition("/")[0] + "/nobody")
    trio.primary.kill()
    for sentinel in trio.sentinels[1:]:
        sentinel.kill()  # without a majority the last one goes on naming the dead primary
    with pytest.raises(LifecycleError, match="No Redis answers at sentinel://"):
        redis_server.check(trio.url)


def test_while_nobody_is_primary_the_turns_are_unknown_and_replicas_say_that_they_hear_nothing(trio: RedisTrio) -> None:
    for sentinel in trio.sentinels:
        sentinel.kill()
    trio.primary.kill()
    also = [f"127.0.0.1:{server.port}" for server in trio.servers]
    deadline = time.monotonic() + 10
    while True:
        with ThreadPoolExecutor(8) as pool:
            seen = redis_status.look(redis_status.place_of(trio.url), also, pool)
        if not any(server.linked for server in seen.servers):
            break
        assert time.monotonic() < deadline, "the replicas still believe in their primary"
    assert [sentinel.state for sentinel in seen.sentinels] == ["down"] * 3
    assert sorted(roles(seen).values()) == ["down", "replica", "replica"]
    assert seen.primary == ""
    assert seen.live_turns is None
