"""What the nodes of a cluster agree on before they start: settings and versions, and whether anything was ever deployed."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.node import agreement, first_deploy
from cluster.node.environment import environment, shared
from cluster.processes import MARK
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


def env_of(cluster: ClusterFile, name: str, **more: str) -> dict[str, str]:
    """The environment of Ray on a node, where the operator has set `more`."""
    folder = Path("/tmp") / name
    env = environment(cluster, name, cluster.nodes[name], folder=folder, mark={MARK: name}, is_head=name == cluster.head)
    return env | more


def publish(cluster: ClusterFile, **more: str) -> None:
    """Be the head."""
    agreement.publish(cluster, env_of(cluster, "aurora", **more), say=silent)


def check(cluster: ClusterFile, **more: str) -> None:
    """Be a node that joins."""
    agreement.check(cluster, env_of(cluster, "star", **more), say=silent)


def silent(text: str) -> None:
    raise AssertionError(f"it had to wait: {text}")


def test_who_has_the_same_settings_and_versions_as_the_head_may_join(redis_server: RedisProcess) -> None:
    publish(cluster_over(redis_server))
    check(cluster_over(redis_server))


def test_who_differs_is_told_in_what_and_sees_no_secret(redis_server: RedisProcess) -> None:
    publish(cluster_over(redis_server, durability=1))
    with redis_server.client() as client:
        client.hset("aurora:cluster:agreeing", mapping={"the version of Ray": "2.59.0", "a setting of tomorrow": "on"})
    with pytest.raises(LifecycleError) as refused:
        check(cluster_over(redis_server))
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert "redis.durability_replicas: 0 here, 1 there" in said
    assert "the version of Ray: 2.60.0 here, 2.59.0 there" in said
    assert "a setting of tomorrow: nothing here, on there" in said
    assert "dashboard_port" not in said
    assert "secret" not in said
    assert "AURORA_DURABILITY_REPLICAS" not in said, "it is the same difference, and no variable that the operator sets"


def test_who_has_other_code_of_the_same_version_is_refused(redis_server: RedisProcess) -> None:
    publish(cluster_over(redis_server))
    with redis_server.client() as client:
        client.hset("aurora:cluster:agreeing", "the code of Aurora", "another")
    with pytest.raises(LifecycleError, match=f"the code of Aurora: {agreement.code_digest()} here, another there"):
        check(cluster_over(redis_server))


def test_the_digest_of_the_code_follows_every_module_and_every_script(tmp_path: Path) -> None:
    files = (("serve_app", "a.py"), ("serve_app", "b.lua"), ("deployments", "c.py"), ("cluster", "d.py"), ("cluster", "e.sh"))
    for folder, name in files:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("before")
    digests = [agreement.code_digest(tmp_path)]
    for file in sorted(tmp_path.rglob("*.*")):
        file.write_text("after")
        digests.append(agreement.code_digest(tmp_path))
    (tmp_path / "serve_app" / "notes.txt").write_text("no code")
    (tmp_path / "cluster" / "addresses.yaml").write_text("of an operator's own")
    (tmp_path / "serve_app" / "__pycache__").mkdir()
    (tmp_path / "serve_app" / "__pycache__" / "a.pyc").write_text("no code")
    assert len(set(digests)) == 1 + len(files)
    assert agreement.code_digest(tmp_path) == digests[-1]


def test_who_has_other_variables_than_the_head_is_told_each_of_them_and_what_to_do(redis_server: RedisProcess) -> None:
    cluster = cluster_over(redis_server)
    publish(cluster, RAY_SERVE_HAPROXY_MAXCONN="9000", RAY_SERVE_MAX_CACHED_HANDLES="7")
    with pytest.raises(LifecycleError) as refused:
        check(cluster, RAY_SERVE_MAX_CACHED_HANDLES="8", AURORA_LOOPBACK="1", RAY_REDIS_PASSWORD="hush")
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert "AURORA_LOOPBACK: 1 here, nothing there" in said
    assert "RAY_SERVE_HAPROXY_MAXCONN: nothing here, 9000 there" in said
    assert "RAY_SERVE_MAX_CACHED_HANDLES: 8 here, 7 there" in said
    assert said.count(" here, ") == 3
    assert "set where `aurora-cli node start` is started (shell, unit, .env): set them there as on the head" in said
    assert "HAProxy" not in said
    assert "hush" not in said


def test_who_has_no_haproxy_though_the_head_has_one_is_told_so(redis_server: RedisProcess) -> None:
    cluster = cluster_over(redis_server)
    publish(cluster)
    with pytest.raises(LifecycleError, match="RAY_SERVE_ENABLE_HA_PROXY: 0 here, 1 there") as refused:
        check(cluster, RAY_SERVE_ENABLE_HA_PROXY="0")
    assert "where no HAProxy is found: name one there in RAY_SERVE_HAPROXY_BINARY_PATH" in str(refused.value)


def test_no_secret_lies_in_the_control_redis(redis_server: RedisProcess) -> None:
    publish(cluster_over(redis_server), RAY_REDIS_PASSWORD="hush", RAY_PROMETHEUS_HOST="http://me:secret@192.0.2.1")
    with redis_server.client() as client:
        said = [client.hgetall(name) for name in client.keys("aurora:cluster:*")]
    assert len(said) == 2
    assert not any(word in str(said) for word in ("hush", "secret@"))


def test_a_head_that_has_never_told_its_variables_is_asked_for_all_the_rest(redis_server: RedisProcess) -> None:
    cluster = cluster_over(redis_server)
    publish(cluster, RAY_SERVE_MAX_CACHED_HANDLES="7")
    with redis_server.client() as client:
        client.delete("aurora:cluster:agreeing:variables")
    check(cluster)
    with pytest.raises(LifecycleError) as refused:
        check(cluster_over(redis_server, durability=1))
    assert "RAY_" not in str(refused.value)


def test_a_node_of_before_finds_nothing_new_in_what_it_compares(redis_server: RedisProcess) -> None:
    cluster = cluster_over(redis_server)
    publish(cluster)
    with redis_server.client() as client:
        assert client.hgetall("aurora:cluster:agreeing").keys() == agreement.settings(cluster).keys()
        assert client.hgetall("aurora:cluster:agreeing:variables") == shared(env_of(cluster, "aurora"))


def test_the_start_of_a_node_with_a_variable_of_its_own_is_refused(
    redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_over(redis_server)
    publish(cluster)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster.model_dump(mode="json")))
    monkeypatch.setenv("AURORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_SERVE_MAX_CACHED_HANDLES", "8")
    result = CliRunner().invoke(app, ["node", "start", "--name", "star", "--config", str(file)])
    assert result.exit_code == 1, result.output
    [line] = result.stderr.splitlines()
    assert "RAY_SERVE_MAX_CACHED_HANDLES: 8 here, nothing there" in line


def test_what_the_head_says_when_it_starts_again_replaces_what_it_said_before(redis_server: RedisProcess) -> None:
    publish(cluster_over(redis_server, durability=1), AURORA_LOOPBACK="1")
    publish(cluster_over(redis_server))
    check(cluster_over(redis_server))


def test_who_comes_before_the_head_says_that_it_waits_and_then_joins(redis_server: RedisProcess) -> None:
    cluster, said = cluster_over(redis_server), []

    def head_comes(text: str) -> None:
        said.append(text)
        publish(cluster)

    agreement.check(cluster, env_of(cluster, "star"), say=head_comes)
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
    publish(cluster)
    assert not first_deploy.is_due(cluster, say=silent)


def test_a_configuration_that_serve_refuses_stays_due(redis_server: RedisProcess, serve_file: Path) -> None:
    with dashboard(400) as (port, _):
        cluster = cluster_over(redis_server, dashboard=port)
        with pytest.raises(LifecycleError, match="this is why"):
            first_deploy.hand_over(cluster, serve_file, say=silent)
    assert first_deploy.is_due(cluster, say=silent)


def test_what_is_waited_for_is_named_again_and_again_until_there_is_no_reason_left_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agreement, "_PATIENCE_S", 0.02)
    said: list[str] = []
    reasons = iter([True, True, False])
    with pytest.raises(LifecycleError, match="start it"):
        agreement.patiently(lambda: None, waiting="Waiting …", failure="start it", say=said.append, wait_on=lambda: next(reasons))
    assert said == ["Waiting …", "start it", "start it"]
    assert next(reasons, None) is None
