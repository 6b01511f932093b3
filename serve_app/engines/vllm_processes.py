"""The processes behind a vLLM engine: told what they need, watched, and ended to the last one.

vLLM computes in processes of its own: the engine core, and workers below it. Two of their habits hurt a cluster. Where one dies
alone, vLLM inside a Serve replica notices after seconds; a pidfd says so at once. Where the replica dies alone, by `kill -9`,
they live on for a while and hold the GPU's memory. So each carries a mark of whose it is in its environment, and whoever starts
next on the machine ends those whose owner is gone.

A process is ended only if it carries such a mark, its owner is not alive, and both were seen from the same PID namespace: a
process number means nothing in another one.
"""

import asyncio
import contextlib
import logging
import multiprocessing.resource_tracker
import os
import secrets
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

OWNER = "AURORA_ENGINE_OWNER"
"""The variable that marks them: namespace, number and start of the process that owns them, and which of its engines it is."""

_TOLD = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports its use to its makers unless told not to; nothing here leaves the cluster
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a replica would inherit its sockets, and no mark
    "SPT_NOENV": "1",  # vLLM renames its processes; setproctitle would write the new name over the mark
}


def _namespace(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def _started(pid: int) -> str:
    """Return when a process started; empty where there is none of that number, or only what its parent has not reaped yet.

    In ticks since the machine's start: a time of day would move with the clock. Together with the number it tells a process from
    every other one of its namespace, and everybody may read it.
    """
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if facts[0] in "ZX" else facts[19]


class EngineProcesses:
    """The processes of one engine, started while `marking`."""

    def __init__(self) -> None:
        self._mark = ""
        self._watched: list[int] = []

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Let whatever this process starts meanwhile count as the engine's, with the variables that vLLM needs.

        Variables that the operator has set stay as they are; all is as before afterwards.
        """
        # The helper of `multiprocessing` belongs to this process, not to the engine, and outlives it.
        multiprocessing.resource_tracker.ensure_running()
        self._mark = f"{_namespace('self')} {os.getpid()} {_started(os.getpid())} {secrets.token_hex(4)}"
        told = {name: value for name, value in _TOLD.items() if name not in os.environ} | {OWNER: self._mark}
        os.environ.update(told)
        try:
            yield
        finally:
            for name in told:
                os.environ.pop(name, None)

    def alive(self) -> list[psutil.Process]:
        """Return the engine's processes that live: the workers below the engine core too, also when that has died."""
        if not self._mark:
            return []
        return [process for process in _all() if _mark_of(process) == self._mark]

    def watch(self, died: Callable[[], None]) -> None:
        """Call `died` on the running loop as soon as any process dies that this one has started itself for the engine."""
        loop, parent = asyncio.get_running_loop(), os.getpid()
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if process.ppid() != parent:
                    continue
                fd = os.pidfd_open(process.pid)
                self._watched.append(fd)
                loop.add_reader(fd, self._died, died)

    def _died(self, died: Callable[[], None]) -> None:
        self.unwatch()
        died()

    def unwatch(self) -> None:
        """Watch no more."""
        while self._watched:
            fd = self._watched.pop()
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def end(self, first: Callable[[], None] = lambda: None, *, wait_s: float = 5.0) -> None:
        """Let `first` end what it can, kill what lives of the engine, and wait until all is gone; at most `wait_s` for each.

        Blocks; for a thread.
        """
        # They are held from before: the mark of a process that is being killed is gone a good while before the process is, and
        # its memory, which the next model wants, is freed in between.
        with _Held(self.alive()) as held:
            ending = threading.Thread(target=first, daemon=True)  # it may hang with an engine that does
            ending.start()
            ending.join(wait_s)
            with _Held(self.alive()) as later:
                held.kill()
                later.kill()
                held.wait(wait_s)
                later.wait(wait_s)


def end_orphans(*, wait_s: float = 5.0) -> list[int]:
    """Kill what engines have left on this machine whose owners are gone; return the numbers. Blocks; for a thread."""
    orphans = [process for process in _all() if _orphaned(process)]
    if orphans:
        log.warning("Ending %d processes of engines whose replica is gone.", len(orphans))
        with _Held(orphans) as held:
            held.kill()
            held.wait(wait_s)
    return [process.pid for process in orphans]


def _all() -> Iterator[psutil.Process]:
    """Yield every process, looked at anew: `psutil.process_iter` may give one whose number is another's by now."""
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _orphaned(process: psutil.Process) -> bool:
    try:
        namespace, number, started, _ = _mark_of(process).split(" ")
        if not namespace == _namespace("self") == _namespace(process.pid):
            return False
        return _started(int(number)) != started
    except (OSError, ValueError):
        return False  # not one of ours, or gone, or somebody else's: not ours to end


def _mark_of(process: psutil.Process) -> str:
    """Return the mark of a process; empty where it has none, is gone, or belongs to somebody else."""
    try:
        return str(process.environ().get(OWNER, ""))
    except (psutil.Error, OSError):
        return ""


class _Held:
    """Processes by pidfd: what one names stays that process, though its number be given away. Use as `with`."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._fds: list[int] = []
        for process in processes:
            try:
                fd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            except OSError as error:  # too many open files: then by its number, and nobody waits for it
                log.warning("Process %d cannot be watched while it ends: %s", process.pid, error)
                with contextlib.suppress(psutil.Error):
                    process.kill()
                continue
            if process.is_running():
                self._fds.append(fd)
            else:  # its number is somebody else's by now
                os.close(fd)

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

    def kill(self) -> None:
        for fd in self._fds:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Wait until all are dead. Does not reap: how a child ended is for whoever started it to learn."""
        deadline = time.monotonic() + seconds
        for fd in self._fds:
            dead = select.poll()  # unlike select, it knows no largest number of a file
            dead.register(fd, select.POLLIN)
            if not dead.poll(max(0.0, deadline - time.monotonic()) * 1000):
                log.error("A process of an engine that was killed is still there after %g s.", seconds)
