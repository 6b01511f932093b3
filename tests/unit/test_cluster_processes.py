"""Finding the processes of a home, and only those."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.processes import MARK, belonging_to, end, find, is_alive, mark_of, start

# Writes blanks over its own environment, as Ray's workers do when they set their title, and says when it has.
OVERWRITE = """
import ctypes, sys, time
start, stop = (int(field) for field in open("/proc/self/stat").read().rsplit(")", 1)[1].split()[47:49])
ctypes.memset(start, 32, stop - start - 1)
print("ready", flush=True)
time.sleep(60)
"""
# Goes on in a child whose parent has ended, and ignores SIGTERM.
ORPHAN = """
import os, signal, sys, time
if os.fork():
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in belonging_to(tmp_path, [process.pid for process in processes]):
        process.kill()
    for process in processes:
        process.kill()
        process.wait()


def launch(code: str, tmp_path: Path, mark: str, started: list["subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    log = tmp_path / f"log{len(started)}"
    environment = {MARK: mark, "PATH": os.environ["PATH"]}
    process = start([sys.executable, "-c", code], env=environment, log=log, folder=Path("/"))
    started.append(process)
    deadline = time.monotonic() + 10
    while "ready" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return process


def numbers(found: list[psutil.Process]) -> list[int]:
    return [process.pid for process in found]


def test_a_process_is_found_by_its_mark_and_that_of_another_home_is_not(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    waiting = "import time; print('ready', flush=True); time.sleep(60)"
    ours = launch(waiting, tmp_path, mark_of(tmp_path, "abc"), started)
    launch(waiting, tmp_path, mark_of(Path(f"{tmp_path}2"), "abc"), started)
    assert numbers(belonging_to(tmp_path)) == [ours.pid]


def test_an_orphan_that_ignores_sigterm_is_found_and_killed(tmp_path: Path, started: list["subprocess.Popen[bytes]"]) -> None:
    parent = launch(ORPHAN, tmp_path, mark_of(tmp_path, "abc"), started)
    parent.wait(timeout=10)
    [orphan] = belonging_to(tmp_path)
    assert orphan.pid != parent.pid
    assert end(lambda: belonging_to(tmp_path), patience=0.2) == []
    assert not is_alive(orphan)


def test_a_process_that_overwrote_its_environment_is_found_by_its_session(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    process = launch(OVERWRITE, tmp_path, mark_of(tmp_path, "abc"), started)
    assert MARK.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert belonging_to(tmp_path) == []
    assert numbers(belonging_to(tmp_path, [process.pid])) == [process.pid]


def test_a_process_of_the_session_with_an_environment_of_its_own_is_not_ours(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    process = launch("import time; print('ready', flush=True); time.sleep(60)", tmp_path, "another", started)
    assert belonging_to(tmp_path, [process.pid]) == []


def test_a_later_process_with_the_same_number_is_not_taken_for_the_first(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    process = launch("import time; print('ready', flush=True); time.sleep(60)", tmp_path, mark_of(tmp_path, "abc"), started)
    at = psutil.Process(process.pid).create_time()
    assert find(process.pid, at) is not None
    assert find(process.pid, at - 100) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert find(process.pid, at) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees, and can be, other users")
def test_root_finds_what_the_owner_of_a_home_runs(tmp_path: Path) -> None:
    nobody = 65534
    os.chown(tmp_path, nobody, nobody)
    environment = {MARK: mark_of(tmp_path, "run"), "PATH": os.environ["PATH"]}
    # Of a session of its own: whatever overwrote its environment in that of a marked process counts as well.
    with subprocess.Popen(["sleep", "60"], user=nobody, env=environment, start_new_session=True) as process:
        try:
            assert [found.pid for found in belonging_to(tmp_path)] == [process.pid]
        finally:
            process.kill()
