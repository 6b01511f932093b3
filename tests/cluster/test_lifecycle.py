"""What `aurora-cli up`, `down`, `status`, `logs` and `deploy` promise, on real Redis, Ray and Serve."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster import redis_server
from cluster.ports import InternalPorts
from cluster.settings import PROJECT_ROOT
from tests.cluster.conftest import NO_OLLAMA, Home, new_home

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LISTENING = "0A"


def chat(home: Home, message: str) -> dict[str, object]:
    body = {"message": message, "personality": "robbie", "client_id": "lifecycle"}
    response = httpx.post(f"{home.url}/api/chat", json=body, timeout=30)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def said(home: Home, conversation: object) -> list[str]:
    url = f"{home.url}/api/conversations/{conversation}/history"
    response = httpx.get(url, params={"client_id": "lifecycle"}, timeout=30)
    assert response.status_code == 200, response.text
    return [message["content"] for message in response.json()["messages"]]


def pids(home: Home) -> set[int]:
    return {process.pid for process in home.processes()}


def assert_nothing_runs(home: Home) -> None:
    assert [" ".join(process.cmdline()) for process in home.processes()] == []
    assert not home.settings.ray_folder.exists()


def assert_refused(home: Home, *words: str) -> None:
    result = home.run("up")
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in result.stdout + result.stderr
    assert_nothing_runs(home)


def eventually(true: Callable[[], bool], *, within: float) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


# An Aurora that is up


def test_a_second_up_says_so_and_changes_nothing(running: Home) -> None:
    before = pids(running)
    assert "already up" in running.up()
    assert pids(running) == before


def test_two_ups_at_once_start_one_aurora(home: Home) -> None:
    both = [home.start("up"), home.start("up")]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("already up" in out for out, _ in outputs) == 1
    assert sum(process.name() == "redis-server" for process in home.processes()) == 1


def test_status_has_a_line_for_the_chat_backend_and_for_every_deployment(running: Home) -> None:
    result = running.run("status")
    assert result.returncode == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "running" in lines["chat-backend"]
    assert running.url in lines["chat-backend"]
    assert "scripted" in lines["chat-backend"]
    assert {"redis", "ray", "chat/Ingress", "chat/PersonalityRouter", "scripted/Inference"} <= lines.keys()
    as_json = json.loads(running.run("status", "--json").stdout)
    names = [component["name"] for component in as_json]
    assert list(dict.fromkeys(name.split()[0] for name in names)) == list(lines)
    assert names.count("pool scripted") == 2, "a line for each replica"


def test_a_turn_shows_in_the_metrics_that_prometheus_is_told_of(running: Home) -> None:
    chat(running, "Count me")
    (found,) = httpx.get(f"{running.record.dashboard_url}/api/prometheus/sd", timeout=10).json()
    address = f"127.0.0.1:{running.record.ports['metrics_export']}"
    assert address in found["targets"]
    labels = ("node", "aurora"), ("outcome", "done"), ("personality", "robbie"), ("pool", "scripted"), ("model", "scripted-1")
    wanted = "".join(f'(?=.*{name}="{value}")' for name, value in labels)
    counted = re.compile(rf"^ray_aurora_turns_total\{{{wanted}.*\}} (\S+)$", re.M)

    def turns() -> float:
        text = httpx.get(f"http://{address}/metrics", timeout=10).text
        return sum(float(count) for count in counted.findall(text)) if "ray_aurora_first_piece_seconds_bucket" in text else 0

    eventually(lambda: turns() >= 1, within=40)  # Ray hands values on every 10 s


def test_grafana_finds_auroras_dashboard_beside_rays(running: Home) -> None:
    grafana = running.settings.ray_folder / "session_latest" / "metrics" / "grafana"
    provisioning = grafana / "provisioning" / "dashboards" / "default.yml"
    eventually(provisioning.exists, within=20)
    (provider,) = yaml.safe_load(provisioning.read_text())["providers"]
    folder = Path(provider["options"]["path"])
    eventually(lambda: {"aurora.json", "serve_grafana_dashboard.json"} <= {file.name for file in folder.iterdir()}, within=20)


def test_logs_of_a_component_are_shown_and_an_unknown_one_is_answered_with_those_there_are(running: Home) -> None:
    for component in ("chat-backend", "ingress", "router", "inference", "controller", "proxy", "haproxy", "redis", "ray"):
        result = running.run("logs", component, "-n", "5")
        assert result.returncode == 0, f"{component}: {result.stderr}"
        assert result.stdout.startswith("==> ")
    refused = running.run("logs", "chatbackend")
    assert refused.returncode == 1
    assert "inference" in refused.stderr


def test_only_the_loopback_address_is_bound(running: Home) -> None:
    chat(running, "Hello!")
    listening = {inode: address for table in ("tcp", "tcp6") for inode, address in listeners(table)}
    bound = {listening[inode] for pid in pids(running) for inode in sockets_of(pid) if inode in listening}
    assert len(bound) > 5
    assert {address for address in bound if not address.startswith(("127.", "::1", "::ffff:127."))} == set()


def test_a_changed_personality_goes_live_and_no_replica_restarts(running: Home) -> None:
    before = pids(running)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PROJECT_ROOT / "configs", Path(folder) / "configs")
        robbie = Path(folder) / "configs" / "personalities" / "robbie.yaml"
        changed = yaml.safe_load(robbie.read_text()) | {"display_name": "Robbie the Second"}
        robbie.write_text(yaml.safe_dump(changed))
        result = running.run("deploy", f"{folder}/configs/local.yaml")
        assert result.returncode == 0, result.stderr
    eventually(lambda: "Robbie the Second" in httpx.get(f"{running.url}/api/personalities", timeout=10).text, within=20)
    replicas = {process.pid for process in running.processes() if "ServeReplica" in " ".join(process.cmdline())}
    assert replicas
    assert replicas <= before


# From nothing, and back


def test_conversations_outlive_a_down_and_other_rays_and_redises_outlive_it_too(home: Home) -> None:
    with another_redis() as redis, another_ray() as ray:
        started = time.monotonic()
        home.up()
        assert time.monotonic() - started < 90
        first = chat(home, "My name is Ada.")
        before = said(home, first["conversation_id"])
        assert "My name is Ada." in before
        assert home.run("down").returncode == 0
        assert_nothing_runs(home)
        assert redis.poll() is None
        assert ray.is_running()
        home.up()
        assert said(home, first["conversation_id"]) == before
        assert home.run("down").returncode == 0
        assert_nothing_runs(home)
        assert ray.is_running()


def test_down_says_so_when_nothing_runs(home: Home) -> None:
    result = home.run("down")
    assert result.returncode == 0
    assert "Nothing" in result.stdout
    assert home.run("status").returncode == 1


def test_what_a_killed_run_left_is_cleaned_up_by_the_next_and_down_finds_that_one_even_without_its_record(home: Home) -> None:
    home.up()
    before, conversation = pids(home), chat(home, "Remember this.")["conversation_id"]
    assert home.record.ray is not None
    psutil.Process(home.record.ray.pid).kill()
    home.up()
    assert not pids(home) & before
    assert "Remember this." in said(home, conversation)
    (home.settings.home / "run.json").unlink()
    assert home.run("down").returncode == 0
    assert_nothing_runs(home)


# What goes wrong


def test_a_taken_port_is_named_with_its_holder_and_nothing_is_started(home: Home) -> None:
    with socket.create_server(("127.0.0.1", home.settings.port)):
        assert_refused(home, str(home.settings.port), f"process {os.getpid()}", "AURORA_PORT")


def test_a_redis_that_cannot_be_reached_is_named_and_nothing_is_started() -> None:
    url = f"redis://:secret@127.0.0.1:{InternalPorts().take()}/0"
    with new_home(redis_url=url) as home:
        assert_refused(home, "AURORA_REDIS_URL")
        assert "secret" not in home.run("up").stderr


def test_a_redis_too_old_is_named_with_its_version_and_nothing_is_started() -> None:
    with old_redis() as url, new_home(redis_url=url) as home:
        assert_refused(home, "5.0.7", "6.2")


def test_an_application_that_fails_is_named_and_nothing_keeps_running(home: Home) -> None:
    config = yaml.safe_load((PROJECT_ROOT / "configs" / "local.yaml").read_text())
    config["applications"] = [{"name": "broken", "import_path": "no_such_module:app", "route_prefix": "/"}]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        result = home.run("up", "--config", file.name)
    assert result.returncode != 0
    assert "broken" in result.stderr
    assert "no_such_module" in result.stderr
    assert_nothing_runs(home)


def test_a_pool_whose_machine_is_off_keeps_nobody_from_coming_up_and_is_named(home: Home, tmp_path: Path) -> None:
    config = yaml.safe_load((PROJECT_ROOT / "configs" / "local.yaml").read_text())
    scripted, chats = config["applications"]
    engine = {"kind": "openai_compatible", "base_url": f"http://{NO_OLLAMA}/v1", "model": "m", "continuation": "none"}
    config["applications"] = [{**scripted, "name": "pc", "args": {"engine": engine}}, scripted, chats]
    described = {"engine": "openai_compatible", "model": "m", "language_model": True}
    chats["args"]["pools"] = {"pc": described, **chats["args"]["pools"]}
    (tmp_path / "configs").symlink_to(PROJECT_ROOT / "configs")
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    shown = " ".join(home.up("--config", str(tmp_path / "serve.yaml")).split())
    assert "Pool pc is not there yet:" in shown
    assert NO_OLLAMA in shown
    assert chat(home, "Hello!")["pool"] == "scripted"


@pytest.mark.parametrize(
    ("number", "started"),
    [(signal.SIGINT, "raylet"), (signal.SIGTERM, "redis-server"), (signal.SIGHUP, "redis-server")],
    ids=["SIGINT once Ray is there", "SIGTERM before", "SIGHUP before"],
)
def test_an_interrupted_up_stops_what_it_had_started(home: Home, number: signal.Signals, started: str) -> None:
    process = home.start("up")
    eventually(lambda: any(started in one.name() for one in home.processes()), within=60)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert_nothing_runs(home)


def test_told_to_listen_beyond_loopback_only_the_chat_does_and_the_dashboard_asks_for_a_token() -> None:
    with new_home(host="0.0.0.0") as home:
        shown = home.up()
        assert "token" in shown
        assert "ssh -L" in shown
        chat(home, "Hello!")
        dashboard = home.record.dashboard_url
        assert httpx.get(f"{dashboard}/api/serve/applications/", timeout=10).status_code == 401
        assert home.run("status").returncode == 0
        listening = {inode: address for table in ("tcp", "tcp6") for inode, address in listeners(table)}
        of_ray = [process.pid for process in home.processes() if "ServeReplica" not in " ".join(process.cmdline())]
        bound = {listening[inode] for pid in of_ray for inode in sockets_of(pid) if inode in listening}
        public = {address for address in bound if not address.startswith(("127.", "::1", "::ffff:127."))}
        fallback = home.record.ports["fallback_http"]  # Serve's second way to the same chat, for when no replica is known
        assert public == {f"0.0.0.0:{home.settings.port}", f"0.0.0.0:{fallback}"}


# What the tests look at, and what lives beside Aurora


def listeners(table: str) -> Iterator[tuple[str, str]]:
    """Yield inode and address of every listening socket, from the kernel's own table."""
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENING:
            host, port = fields[1].split(":")
            words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
            family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
            yield fields[9], f"{socket.inet_ntop(family, b''.join(words))}:{int(port, 16)}"


def sockets_of(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


@contextmanager
def another_redis() -> Iterator["subprocess.Popen[bytes]"]:
    """A Redis that is none of ours."""
    path, _ = redis_server.executable()
    command = [path, "--port", str(InternalPorts().take()), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextmanager
def another_ray() -> Iterator[psutil.Process]:
    """A Ray that is none of ours, with ports as Ray chooses them."""
    ray = Path(sys.executable).parent / "ray"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        command = [ray, "start", "--head", "--block", f"--temp-dir={folder}", "--num-cpus=1", "--object-store-memory=80000000"]
        command += ["--disable-usage-stats", "--port=0", "--include-dashboard=false"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            eventually(lambda: _raylet_below(process.pid) is not None, within=60)
            raylet = _raylet_below(process.pid)
            assert raylet is not None
            yield raylet
        finally:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)
            for member in family:
                if member.is_running():
                    member.kill()


def _raylet_below(pid: int) -> psutil.Process | None:
    found = (child for child in psutil.Process(pid).children(recursive=True) if child.name() == "raylet")
    return next(found, None)


@contextmanager
def old_redis() -> Iterator[str]:
    """The one fake of this file: no Redis of that age can be installed here. It answers INFO and refuses all else."""
    info = b"# Server\r\nredis_version:5.0.7\r\n"

    def serve(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(4096):
                known = b"INFO" in request.upper()
                connection.sendall(b"$%d\r\n%s\r\n" % (len(info), info) if known else b"-ERR unknown command\r\n")

    def accept(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)
