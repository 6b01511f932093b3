"""Which ports are free, and who holds the others."""

import errno
import random
import socket

import psutil

from cluster.failures import LifecycleError

# Outside of what Ray gives its workers by default (10002-19999) and of what Linux hands to outgoing connections (from 32768).
_INTERNAL = range(20000, 25000)
_REPLICA_WINDOWS = range(25000, 30000, 1000)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether a server could listen on `host:port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without it, connections that linger after a server's end make its port look taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise LifecycleError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Is it an address of this machine?"
            ) from error
    return True


class InternalPorts:
    """Hands out free ports nobody needs to remember, each once, and none of those in `spoken_for`."""

    def __init__(self, *spoken_for: int) -> None:
        self._candidates = [port for port in random.sample(_INTERNAL, len(_INTERNAL)) if port not in spoken_for]

    def take(self) -> int:
        """Return a port that is free on every address."""
        while self._candidates:
            port = self._candidates.pop()
            if is_free(port, "0.0.0.0"):
                return port
        raise LifecycleError(f"No port from {_INTERNAL.start} to {_INTERNAL.stop} is free on this machine.")


def replica_window() -> tuple[int, int]:
    """Return the first and last port of a range for replicas; Serve itself skips what is taken in it."""
    first = random.choice(_REPLICA_WINDOWS)
    return first, first + _REPLICA_WINDOWS.step - 1


def holder(port: int) -> str:
    """Say which process listens on `port`, as far as this user may know."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                break
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except psutil.Error:
                break
    return "another program"
