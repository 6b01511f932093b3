"""Being in a namespace of the lab: who is, and how this process does something there."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from cluster.failures import LifecycleError
from cluster.lab import network

_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def processes(name: str) -> list[int]:
    """Return the numbers of all processes in a namespace of the lab, as this machine sees them; fast, and never out of date."""
    try:
        inode = network.path(name).stat().st_ino
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.stat(f"/proc/{entry}/ns/net").st_ino == inode:
                    found.append(int(entry))
            except OSError:
                continue  # it has just ended
    return found


def numbers_inside(pid: int) -> list[int]:
    """Return a process's numbers, from this machine's view to its own; empty where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "NSpid:")
    return [int(number) for number in line.split()[1:]]


def enter(namespace: Path) -> None:
    """Move this thread into a network namespace: sockets that it makes from now on are that namespace's.

    Raises:
        LifecycleError: the kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.open() as opened:
        if libc.setns(opened.fileno(), _CLONE_NEWNET) != 0:
            raise LifecycleError(f"Cannot enter the lab's network: {os.strerror(ctypes.get_errno())}. It needs root.")


class Inside:
    """Threads of this process that live in a network namespace of the lab: sockets they make are that namespace's.

    Close it, or use it as a context manager.
    """

    def __init__(self, name: str, *, threads: int = 8) -> None:
        initializer = partial(enter, network.path(name))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"lab-{name}", initializer=initializer)

    def __enter__(self) -> "Inside":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being done there, and end the threads."""
        self._threads.shutdown()

    def start(self, do: Callable[[], T]) -> "Future[T]":
        """Do something there, in the background."""
        return self._threads.submit(do)

    def call(self, do: Callable[[], T]) -> T:
        """Do something there and return its result."""
        return self.start(do).result()
