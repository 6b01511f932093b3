"""A real redis-server of the test's own: on loopback, with an append-only file, to be killed, frozen and restarted."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from cluster.redis_server import executable

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(11_000 + 1_000 * _WORKER, 12_000 + 1_000 * _WORKER))
"""Each worker of the test run its own, below those that the system gives away: a port must stay free until it is used."""


def free_port() -> int:
    """A port that is free now, and was not given to anybody for a long time."""
    for port in itertools.islice(_PORTS, 1_000):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port of this worker is free")


class RedisProcess:
    def __init__(self, folder: Path, *, program: str = "", options: Sequence[str] = ()) -> None:
        self.program = program
        self.options = list(options)
        self.port = free_port()
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        path = self.program or executable()[0]
        options = (
            f"--bind 127.0.0.1 --port {self.port} --dir {self.folder} --appendonly yes --appendfsync everysec --loglevel warning"
        )
        with (self.folder / "redis.log").open("ab") as log:
            command = [path, *options.split(), "--save", "", *self.options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                assert self.process.poll() is None, (self.folder / "redis.log").read_text()
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=10, protocol=2, decode_responses=True)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.frozen = False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.thaw()
            self.kill()
