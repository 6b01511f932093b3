"""Starting processes so that they, and whatever they start, can be found again and ended, and nobody else's.

Everything started carries a mark in its environment, which children inherit; it is found by reading `/proc`. Redis and some
of Ray's processes write their title over that memory: such a one, and only such a one, is known by its session, which is
that of a process we started, or by the folder it works in.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from cluster.settings import owner_of

MARK = "AURORA_HOME_MARK"

_VARIABLE = re.compile(rb"[A-Za-z_]\w*=")


def mark_of(home: Path, run: str) -> str:
    """Return the mark of one run of the Aurora that lives in `home`."""
    return f"{home}:{run}"


def start(command: Sequence[str], *, env: Mapping[str, str], log: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that a Ctrl-C in our terminal does not reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=dict(env), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def is_alive(process: psutil.Process) -> bool:
    """Tell whether this very process (not a later one with its number) still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find(pid: int, started: float) -> psutil.Process | None:
    """Return the living process that had this number and this start time, or None."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return None
    return process if same and is_alive(process) else None


def belonging_to(home: Path, sessions: Iterable[int] = ()) -> list[psutil.Process]:
    """Return the living processes of this user, or of the one who owns `home`, that belong to the Aurora in there.

    `sessions` are the numbers of processes that we started, each of which leads a session.
    """
    mark = f"{MARK}={mark_of(home, '')}".encode()
    us, users = _ourselves(), {os.getuid(), owner_of(home)}
    marked, overwritten = set(), []
    for process in psutil.process_iter():
        if process.pid in us:
            continue
        environment = _environment(process, users)
        if environment is None:
            continue
        if any(entry.startswith(mark) for entry in environment):
            marked.add(process)
        elif not _VARIABLE.match(environment[0]):
            overwritten.append(process)
    leaders = set(sessions) | {_session(process) for process in marked}
    marked.update(process for process in overwritten if _session(process) in leaders or _works_in(process, home))
    return sorted((process for process in marked if is_alive(process)), key=lambda process: process.pid)


def end(processes: Callable[[], list[psutil.Process]], *, patience: float) -> list[psutil.Process]:
    """Ask all of `processes()` to end, then kill what still lives after `patience` seconds; return what even that left.

    `processes` is asked again each time, as a process that ends may leave children behind.
    """
    for number, deadline in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + deadline
        asked: set[psutil.Process] = set()
        while remaining := processes():
            for process in remaining:
                if process not in asked:
                    send(process, number)
                    asked.add(process)
            if time.monotonic() > until:
                break
            wait_for_end(remaining, timeout=0.5)
        else:
            return []
    return processes()


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal, unless the process has already gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def wait_for_end(processes: Iterable[psutil.Process], *, timeout: float) -> bool:
    """Wait until all have ended; tell whether they have."""
    deadline, remaining = time.monotonic() + timeout, list(processes)
    while remaining := [process for process in remaining if is_alive(process)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _ourselves() -> set[int]:
    """Return the numbers of this process and its ancestors, which inherit a mark when run from inside Aurora."""
    process = psutil.Process()
    return {process.pid, *(parent.pid for parent in process.parents())}


def _environment(process: psutil.Process, users: set[int]) -> list[bytes] | None:
    """Return what lies where a process of these users was given its environment, or None for the processes of others."""
    try:
        if process.uids().real not in users:
            return None
        return Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except (psutil.Error, OSError):
        return None


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return -1


def _works_in(process: psutil.Process, home: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{process.pid}/cwd")).is_relative_to(home)
    except OSError:
        return False
