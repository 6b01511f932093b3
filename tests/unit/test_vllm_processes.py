"""Processes of an engine are told by the mark in their environment; only those whose owner is gone are anybody's to end."""

import asyncio
import errno
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from serve_app.engines import VllmConfig, make_engine
from serve_app.engines.vllm_processes import OWNER, EngineProcesses, end_orphans

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
LARGE = [sys.executable, "-c", "import time; kept = b'x' * 2**29; print('up', flush=True); time.sleep(60)"]
"""Half a GiB takes a while to free, after the environment is gone and before the process is."""
CORE = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
print(worker.pid, flush=True)
time.sleep(60)
"""
OWNS_ONE = """
import subprocess, sys
from serve_app.engines.vllm_processes import EngineProcesses
with EngineProcesses().marking():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.readline()
"""


@contextmanager
def sleeping(environment: dict[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_is_started_meanwhile_is_the_engines_and_the_environment_is_as_before() -> None:
    before, processes, others = dict(os.environ), EngineProcesses(), EngineProcesses()
    with processes.marking(), sleeping() as ours:
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
        with others.marking(), sleeping():
            assert [process.pid for process in processes.alive()] == [ours.pid]
        processes.end()
        assert ours.wait(5) == -9
        assert processes.alive() == []
    assert dict(os.environ) == before


def test_a_process_that_somebody_else_has_killed_is_waited_for_although_its_mark_is_gone() -> None:
    processes = EngineProcesses()
    with processes.marking(), subprocess.Popen(LARGE, stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        ours.stdout.readline()
        [process] = processes.alive()

        def killed_by_vllm() -> None:
            ours.kill()
            deadline = time.monotonic() + 5
            while processes.alive():
                assert time.monotonic() < deadline

        processes.end(killed_by_vllm)
        assert process.status() == psutil.STATUS_ZOMBIE


async def test_a_death_is_told_at_once_and_once() -> None:
    processes, died = EngineProcesses(), asyncio.Event()
    with processes.marking(), sleeping() as ours:
        processes.watch(died.set)
        ours.kill()
        async with asyncio.timeout(5):
            await died.wait()
    processes.unwatch()


async def test_who_watches_no_more_is_not_told() -> None:
    processes, told = EngineProcesses(), []
    with processes.marking(), sleeping():
        processes.watch(lambda: told.append(True))
        processes.unwatch()
        await asyncio.to_thread(processes.end)
        await asyncio.sleep(0)
    assert told == []


def test_a_living_owner_keeps_its_processes_and_those_of_a_dead_one_are_ended() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNS_ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    assert end_orphans() == []
    assert child.is_running()
    owner.kill()
    owner.communicate()
    assert end_orphans() == [child.pid]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_an_owner_whose_parent_has_not_reaped_it_yet_is_gone_all_the_same() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNS_ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert end_orphans() == [child]
    owner.communicate()


def test_the_workers_of_a_core_that_died_alone_are_ended_too() -> None:
    processes = EngineProcesses()
    with processes.marking(), subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True) as core:
        assert core.stdout is not None
        worker = psutil.Process(int(core.stdout.readline()))
        core.kill()
        core.wait()
        assert processes.alive() == [worker]
        processes.end()
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_an_engine_that_hangs_in_its_own_shutdown_is_killed_all_the_same() -> None:
    processes, never = EngineProcesses(), threading.Event()
    with processes.marking(), sleeping() as ours:
        processes.end(never.wait, wait_s=0.1)
        assert ours.wait(5) == -9
    never.set()


def test_a_process_with_many_open_files_ends_its_engine_too() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_048), hard))
    processes, files = EngineProcesses(), []
    try:
        with processes.marking(), sleeping() as ours:
            files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
            before = len(os.listdir("/proc/self/fd"))
            processes.end()
            assert ours.wait(5) == -9
            assert len(os.listdir("/proc/self/fd")) == before
    finally:
        for fd in files:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_file_left_to_watch_it_by_a_process_is_killed_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    processes = EngineProcesses()
    with processes.marking(), sleeping() as ours:
        monkeypatch.setattr(os, "pidfd_open", full)
        processes.end()
        assert ours.wait(5) == -9


def test_a_mark_of_another_namespace_or_none_of_ours_says_nothing() -> None:
    with sleeping({**os.environ, OWNER: "pid:[1] 999999 1 abcd"}), sleeping({**os.environ, OWNER: "something else"}):
        assert end_orphans() == []


def test_a_number_that_was_given_away_again_is_another_owner() -> None:
    namespace = os.readlink("/proc/self/ns/pid")
    with sleeping({**os.environ, OWNER: f"{namespace} {os.getpid()} 1 abcd"}) as orphan:
        assert end_orphans() == [orphan.pid]


def test_an_engine_says_what_it_is_before_it_is_started_and_closes_without() -> None:
    engine = make_engine(VllmConfig(model="/models/some", served_model_name="some", max_num_seqs=3))
    assert (engine.info.model, engine.info.continues_by, engine.info.language_model) == ("some", "token_ids", True)
    assert (engine.status.models, engine.status.busy, engine.status.slots) == ((), 0, 3)
    asyncio.run(engine.close())
