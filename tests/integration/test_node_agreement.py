"""What the nodes of a cluster agree on before they start: settings and versions, and whether anything was ever deployed."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.node import agreement, first_deploy
from tests.support.redis_process import RedisProcess

pytestmark = pytest.mark.integration


def cluster_over(redis: RedisProcess, *, durability: int = 0, dashboard: int = 8265) -> ClusterFile:
    described: dict[str, Any] = {
        "name": "agreeing",
        "head": "aurora",
        "serve_config": "serve.yaml",
        "nodes": {"aurora": {"address": "127.0.0.1"}, "star": {"address": "127.0.0.2"}},
        "redis": {"url": "redis://:secret@192.0.2.1/0", "durability_replicas": durability},
        "ray": {"redis": f"127.0.0.1:{redis.port}", "dashboard_port": dashboard},
    }
    return ClusterFile.model_validate(described)


def silent(text: str) -> None:
    raise AssertionError(f"it had to wait: {text}")


def test_who_has_the_same_settings_and_versions_as_the_head_may_join(redis_server: RedisProcess) -> None:
    agreement.publish(cluster_over(redis_server), say=silent)
    agreement.check(cluster_over(redis_server), say=silent)


def test_who_differs_is_told_in_what_and_sees_no_secret(redis_server: RedisProcess) -> None:
    agreement.publish(cluster_over(redis_server, durability=1), say=silent)
    with redis_server.client() as client:
        client.hset("aurora:cluster:agreeing", mapping={"the version of Ray": "2.59.0", "a setting of tomorrow": "on"})
    with pytest.raises(LifecycleError) as refused:
        agreement.check(cluster_over(redis_server), say=silent)
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert "redis.durability_replicas: 0 here, 1 there" in said
    assert "the version of Ray: 2.60.0 here, 2.59.0 there" in said
    assert "a setting of tomorrow: nothing here, on there" in said
    assert "dashboard_port" not in said
    assert "secret" not in said


def test_who_has_other_code_of_the_same_version_is_refused(redis_server: RedisProcess) -> None:
    agreement.publish(cluster_over(redis_server), say=silent)
    with redis_server.client() as client:
        client.hset("aurora:cluster:agreeing", "the code of Aurora", "another")
    with pytest.raises(LifecycleError, match=f"the code of Aurora: {agreement.code_digest()} here, another there"):
        agreement.check(cluster_over(redis_server), say=silent)


def test_the_digest_of_the_code_follows_every_module_and_every_script(tmp_path: Path) -> None:
    for folder, name in (("serve_app", "a.py"), ("serve_app", "b.lua"), ("deployments", "c.py")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("before")
    digests = [agreement.code_digest(tmp_path)]
    for file in sorted(tmp_path.rglob("*.*")):
        file.write_text("after")
        digests.append(agreement.code_digest(tmp_path))
    (tmp_path / "serve_app" / "notes.txt").write_text("no code")
    (tmp_path / "serve_app" / "__pycache__").mkdir()
    (tmp_path / "serve_app" / "__pycache__" / "a.pyc").write_text("no code")
    assert len(set(digests)) == 4
    assert agreement.code_digest(tmp_path) == digests[-1]


def test_what_the_head_says_when_it_starts_again_replaces_what_it_said_before(redis_server: RedisProcess) -> None:
    agreement.publish(cluster_over(redis_server, durability=1), say=silent)
    agreement.publish(cluster_over(redis_server), say=silent)
    agreement.check(cluster_over(redis_server), say=silent)


def test_who_comes_before_the_head_says_that_it_waits_and_then_joins(redis_server: RedisProcess) -> None:
    cluster, said = cluster_over(redis_server), []

    def head_comes(text: str) -> None:
        said.append(text)
        agreement.publish(cluster, say=silent)

    agreement.check(cluster, say=head_comes)
    assert said == ["Waiting for the head, aurora at 127.0.0.1 …"]


# The first deployment


@contextmanager
def dashboard(answer: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A stand-in for Serve's REST API: its port, and what it was told to run. It answers a PUT with `answer`."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(200, b"{}")

        def do_PUT(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._say(answer, b"refused, and this is why")

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, told
        finally:
            server.shutdown()
            thread.join(10)


@pytest.fixture
def serve_file(tmp_path: Path) -> Path:
    file = tmp_path / "serve.yaml"
    file.write_text("applications: [{name: chat, import_path: 'some:app'}]\n")
    return file


def test_a_cluster_is_deployed_once_and_the_head_that_starts_again_knows(redis_server: RedisProcess, serve_file: Path) -> None:
    said: list[str] = []
    with dashboard(200) as (port, told):
        cluster = cluster_over(redis_server, dashboard=port)
        assert first_deploy.is_due(cluster, say=silent)
        first_deploy.hand_over(cluster, serve_file, say=said.append)
    [config] = told
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert [application["name"] for application in config["applications"]] == ["chat"]
    assert not first_deploy.is_due(cluster, say=silent)
    assert len(said) == 1
    agreement.publish(cluster, say=silent)
    assert not first_deploy.is_due(cluster, say=silent)


def test_a_configuration_that_serve_refuses_stays_due(redis_server: RedisProcess, serve_file: Path) -> None:
    with dashboard(400) as (port, _):
        cluster = cluster_over(redis_server, dashboard=port)
        with pytest.raises(LifecycleError, match="this is why"):
            first_deploy.hand_over(cluster, serve_file, say=silent)
    assert first_deploy.is_due(cluster, say=silent)
