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


def _identity(pid: int) -> str:
    """Return what tells a process from every other one, also from a later one of the same number.

    Its start is counted in ticks since the machine's: a time of day would move with the clock.
    """
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{_namespace(pid)} {pid} {ticks}"


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
        self._mark = f"{_identity(os.getpid())} {secrets.token_hex(4)}"
        told = {name: value for name, value in _TOLD.items() if name not in os.environ} | {OWNER: self._mark}
        os.environ.update(told)
        try:
            yield
        finally:
            for name in told:
                os.environ.pop(name, None)

    def alive(self) -> list[psutil.Process]:
        """Return the engine's processes that live, the workers below the engine core too."""
        if not self._mark:
            return []
        return [process for process in psutil.Process().children(recursive=True) if _mark_of(process) == self._mark]

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
        """Let `first` end what it can, kill what lives of the engine, and wait until all is gone. Blocks; for a thread."""
        # They are held from before: the mark of a process that is being killed is gone a good while before the process is, and
        # its memory, which the next model wants, is freed in between.
        held = _held(self.alive())
        try:
            first()
        finally:
            _kill([*held, *_held(self.alive())], wait_s)


def end_orphans(*, wait_s: float = 5.0) -> list[int]:
    """Kill what engines have left on this machine whose owners are gone; return the numbers. Blocks; for a thread."""
    orphans = [process for process in psutil.process_iter() if _orphaned(process)]
    if orphans:
        log.warning("Ending %d processes of engines whose replica is gone.", len(orphans))
        _kill(_held(orphans), wait_s)
    return [process.pid for process in orphans]


def _orphaned(process: psutil.Process) -> bool:
    owner, _, _ = _mark_of(process).rpartition(" ")
    try:
        namespace, number, _ = owner.split(" ")
        if not namespace == _namespace("self") == _namespace(process.pid):
            return False
    except (OSError, ValueError):
        return False  # not one of ours, or gone, or somebody else's: not ours to end
    try:
        return _identity(int(number)) != owner
    except (FileNotFoundError, ProcessLookupError):
        return True


def _mark_of(process: psutil.Process) -> str:
    """Return the mark of a process; empty where it has none, is gone, or belongs to somebody else."""
    try:
        return str(process.environ().get(OWNER, ""))
    except (psutil.Error, OSError):
        return ""


def _held(processes: list[psutil.Process]) -> list[int]:
    """Return a pidfd of each that lives: what it names stays that process, though its number be given away."""
    fds = []
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(process.pid)
            if process.is_running():
                fds.append(fd)
            else:  # its number is somebody else's by now
                os.close(fd)
    return fds


def _kill(fds: list[int], wait_s: float) -> None:
    """Kill, and wait until all are dead; closes `fds`. Does not reap: how a child ended is for whoever started it to learn."""
    for fd in fds:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    deadline = time.monotonic() + wait_s
    for fd in fds:
        select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        os.close(fd)
