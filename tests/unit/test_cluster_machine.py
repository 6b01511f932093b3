"""Small judgements about this machine: versions, ports, addresses, the record, the ends of logs."""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster import logs, run_record
from cluster.failures import LifecycleError
from cluster.ports import InternalPorts, holder, is_free, replica_window
from cluster.ray_environment import HAPROXY
from cluster.redis_server import parse_version, without_password
from cluster.run_record import RunRecord, Started
from cluster.settings import Settings


@pytest.mark.parametrize(
    ("text", "version"),
    [("6.2.14", (6, 2, 14)), ("v=7.4.1 sha=0", (7, 4, 1)), ("255.255.255", (255, 255, 255)), ("8.0-rc1", (8, 0)), ("?", ())],
)
def test_versions_are_read_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_ten_is_newer_than_six() -> None:
    assert parse_version("10.0.0") > parse_version("6.2.14") > parse_version("6.0.9")


def test_a_password_is_not_shown() -> None:
    assert without_password("redis://user:secret@host:6379/1") == "redis://user:***@host:6379/1"
    assert without_password("redis://:secret@host/0") == "redis://:***@host/0"
    assert without_password("redis://host:6379/0") == "redis://host:6379/0"


def test_a_port_with_a_listener_is_taken_and_its_holder_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert f"process {os.getpid()}" in holder(port)
    assert is_free(port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LifecycleError, match=r"192\.0\.2\.1"):
        is_free(8000, "192.0.2.1")


def test_internal_ports_come_once_and_lie_where_neither_ray_nor_linux_hands_out_its_own() -> None:
    spoken_for = range(20000, 24990)
    ports = InternalPorts(*spoken_for)
    taken = [ports.take() for _ in range(5)]
    assert len(set(taken)) == 5
    assert all(24990 <= port < 25000 for port in taken)
    first, last = replica_window()
    assert 25000 <= first < last < 30000


def test_settings_read_the_environment_and_refuse_what_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AURORA_PORT", "8123")
    monkeypatch.setenv("AURORA_HOST", "localhost")
    settings = Settings()
    assert (settings.host, settings.port, settings.is_loopback) == ("127.0.0.1", 8123, True)
    assert settings.local_url == "http://127.0.0.1:8123"
    assert not Settings(host="0.0.0.0").is_loopback
    assert Settings(host="0.0.0.0", port=1).local_url == "http://127.0.0.1:1"
    with pytest.raises(ValidationError, match="not an IPv4 address"):
        Settings(host="chat.example")


def test_the_sockets_of_haproxy_fit_into_the_path_it_takes(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / ("long" * 50)):
        socket_path = Settings(home=home).ray_folder / HAPROXY / ("f" * 56) / "metrics.sock"
        assert len(str(socket_path)) <= 97


def test_two_homes_never_share_a_folder(tmp_path: Path) -> None:
    assert Settings(home=tmp_path / "a").ray_folder != Settings(home=tmp_path / "b").ray_folder


def test_a_record_comes_back_as_it_was_written_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    record = RunRecord(
        run="abc",
        started_at=datetime.now(UTC),
        host="127.0.0.1",
        port=8000,
        node_name="aurora",
        config=tmp_path,
        dashboard_port=8265,
        redis_url="redis://:secret@127.0.0.1/0",
        ray=Started(pid=1, at=2.5),
    )
    record.save(tmp_path)
    assert run_record.load(tmp_path) == record
    assert (tmp_path / "run.json").stat().st_mode & 0o077 == 0
    (tmp_path / "run.json").write_text("{")
    assert run_record.load(tmp_path) is None
    run_record.forget(tmp_path)
    run_record.forget(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else for a moment")
def test_a_record_of_another_user_is_refused_in_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch(mode=0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(LifecycleError, match=r"is another user's: become that user, or root \(sudo"):
            run_record.load(tmp_path)
    finally:
        os.seteuid(0)


def test_the_last_lines_of_a_log_are_shown_the_youngest_file_last(tmp_path: Path) -> None:
    old, new = tmp_path / "a.log", tmp_path / "b.log"
    new.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(5000)))
    old.write_text("only\n")
    os.utime(old, (1, 1))
    shown = list(logs.last_lines([new, old], 2))
    assert [(path.name, line.split(" x")[0]) for path, line in shown] == [
        ("a.log", "only"),
        ("b.log", "line 4998"),
        ("b.log", "line 4999"),
    ]
