"""Stopping this machine's node: by its unit where systemd runs it, as that would start it again, else by itself."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM, SIGUSR1

import psutil
import pytest

from cluster.failures import LifecycleError
from cluster.node.stop import stop
from cluster.settings import Settings
from tests.support.systemd import Systemd, node_process

pytestmark = pytest.mark.integration


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a node is installed."""
    prefix = tmp_path / "node"
    monkeypatch.setenv("AURORA_HOME", str(prefix / ".aurora"))
    return prefix


@pytest.fixture
def ray(prefix: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """What runs there."""
    with node_process(prefix / ".aurora") as process:
        yield process


def ends(process: "subprocess.Popen[bytes]") -> str:
    """How to stop it, in a way that tells who did it, and which no shell has it ignore."""
    return f"kill -USR1 {process.pid}"


@pytest.mark.parametrize("unit", ["aurora-head.service", "aurora-worker.service"])
@pytest.mark.parametrize("state", ["active", "activating"])
def test_a_node_that_systemd_runs_is_stopped_by_its_unit(
    unit: str, state: str, prefix: Path, ray: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = Systemd(tmp_path / "bin", monkeypatch, unit=unit, prefix=prefix, state=state, stop=ends(ray))
    assert stop(Settings()) == 1
    assert systemd.changes == [f"stop {unit}"]
    assert ray.wait(10) == -SIGUSR1


def test_an_installation_is_known_also_by_another_path(
    prefix: Path, ray: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opt").symlink_to(prefix)
    systemd = Systemd(tmp_path / "bin", monkeypatch, prefix=tmp_path / "opt", stop=ends(ray))
    assert stop(Settings()) == 1
    assert systemd.changes == ["stop aurora-worker.service"]


@pytest.mark.parametrize(("where", "state"), [("node", "inactive"), ("node", "failed"), ("another", "active")])
def test_a_node_that_systemd_does_not_run_is_stopped_by_itself(
    where: str, state: str, prefix: Path, ray: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the lab of a machine on which another node is installed."""
    systemd = Systemd(tmp_path / "bin", monkeypatch, prefix=prefix.with_name(where), state=state)
    assert stop(Settings()) == 1
    assert systemd.changes == []
    assert ray.wait(10) == -SIGTERM


def test_a_node_of_another_user_is_not_stopped_and_that_is_said(
    ray: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise psutil.AccessDenied(ray.pid)

    monkeypatch.setenv("PATH", str(tmp_path))  # no systemd
    monkeypatch.setattr(psutil.Process, "send_signal", denied)
    with pytest.raises(LifecycleError, match="another user's: sudo"):
        stop(Settings())


@pytest.mark.parametrize("systemctl", ["#!/bin/sh\nexit 1\n", ""])
def test_a_machine_without_systemd_has_no_units(
    systemctl: str, ray: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if systemctl:
        (tmp_path / "systemctl").write_text(systemctl)
        (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stop(Settings()) == 1
    assert ray.wait(10) == -SIGTERM


def test_a_unit_that_may_not_be_stopped_is_left_alone_with_all_that_it_runs(
    prefix: Path, ray: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Systemd(tmp_path / "bin", monkeypatch, prefix=prefix, stop="echo 'Access denied' >&2; exit 1")
    with pytest.raises(LifecycleError) as refused:
        stop(Settings())
    assert str(refused.value) == (
        "systemctl stop aurora-worker.service failed (Access denied): sudo systemctl stop aurora-worker.service."
    )
    assert ray.poll() is None
