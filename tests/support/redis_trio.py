"""A replicated Redis of the test's own: a primary, two replicas and, where wanted, three Sentinels, all on loopback."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster.redis_server import parse_version, program_version
from tests.support.programs import program
from tests.support.redis_process import RedisProcess

NAME = "aurora"
WAITS_SINCE = (7, 0)
DOWN_AFTER_MS = 1_000
AS_IN_A_CLUSTER = (
    "--min-replicas-to-write 1 --min-replicas-max-lag 3 --maxmemory-policy noeviction "
    "--repl-diskless-sync yes --repl-diskless-sync-delay 0 --repl-ping-replica-period 1"
)
SYSTEM = "/usr/local/bin:/usr/bin"


def newest_redis() -> str:
    """The path of a redis-server that can wait for replicas; where there is none, see `program`."""
    for path in filter(None, (shutil.which("redis-server"), shutil.which("redis-server", path=SYSTEM))):
        if parse_version(program_version(path)) >= WAITS_SINCE:
            return path
    program("redis-sentinel")
    path = program("redis-server")  # the system's, also where an older one is on the PATH
    if parse_version(program_version(path)) < WAITS_SINCE:
        pytest.skip(f"{path} is older than 7.0, and this system has no newer one")
    return path


class Sentinel(RedisProcess):
    """A Sentinel of its own; it answers commands like any Redis."""

    def __init__(self, program: str, folder: Path, primary: int) -> None:
        super().__init__(folder, program=program)
        folder.mkdir(exist_ok=True)
        self.conf = folder / "sentinel.conf"
        self.conf.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {primary} 2\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {NAME} 3000\n"
            f"sentinel parallel-syncs {NAME} 2\n"
        )

    def start(self) -> None:
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([self.program, str(self.conf), "--sentinel"], stdout=log, stderr=log)
        self.wait_until_it_answers()

    def primary(self) -> int:
        """The port of the primary, as this Sentinel sees it."""
        with self.client() as client:
            return int(client.sentinel_get_master_addr_by_name(NAME)[1])


class RedisTrio:
    """Started by `start`; `close` ends every process, also frozen ones."""

    def __init__(self, program: str, folder: Path, *, sentinels: int) -> None:
        self._program = program
        self._folder = folder
        self.servers = [self._server(number) for number in range(3)]
        self.primary = self.servers[0]
        self.sentinels = [Sentinel(program, folder / f"sentinel{n}", self.primary.port) for n in range(sentinels)]

    def _server(self, number: int) -> RedisProcess:
        folder = self._folder / f"redis{number}"
        folder.mkdir()
        return RedisProcess(folder, program=self._program, options=AS_IN_A_CLUSTER.split())

    @property
    def replicas(self) -> list[RedisProcess]:
        """All but the primary."""
        return [server for server in self.servers if server is not self.primary]

    @property
    def url(self) -> str:
        """How Aurora reaches it: through the Sentinels where there are any."""
        if not self.sentinels:
            return self.primary.url
        return f"sentinel://{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in self.sentinels)}/{NAME}"

    def start(self) -> None:
        for server in self.servers:
            server.start()
        for replica in self.replicas:
            self.attach(replica)
        self.until_whole()
        for sentinel in self.sentinels:
            sentinel.start()
        others = len(self.sentinels) - 1
        for sentinel in self.sentinels:
            _until(lambda s=sentinel: _knows(s) == (others, len(self.replicas)), "the Sentinels did not find each other")  # type: ignore[misc]

    def attach(self, replica: RedisProcess) -> None:
        """Make a server that runs a replica of the primary."""
        with replica.client() as client:
            client.replicaof("127.0.0.1", self.primary.port)

    def until_whole(self) -> None:
        """Wait until the primary has all its replicas, and they all that was written."""
        with self.primary.client() as client:
            _until(
                lambda: client.set("aurora:barrier", "1"), "no replica attached"
            )  # WAIT is about what its own connection wrote
            _until(lambda: client.wait(len(self.replicas), 100) == len(self.replicas), "the replicas did not attach")

    def freeze_replicas(self) -> None:
        for replica in self.replicas:
            replica.freeze()

    def thaw_replicas(self) -> None:
        for replica in self.replicas:
            replica.thaw()

    def promote(self) -> RedisProcess:
        """After the primary's end: make the replica that has most the primary, as Sentinels do; return the old primary."""
        old = self.primary
        self.primary = max(self.replicas, key=_offset)
        with self.primary.client() as client:
            client.replicaof("NO", "ONE")
        for replica in self.servers:
            if replica not in (old, self.primary):
                self.attach(replica)
        return old

    def until_failed_over(self, timeout: float = 20.0) -> None:
        """Wait until the Sentinels agree on another primary than before."""
        old = self.primary
        awake = [sentinel for sentinel in self.sentinels if not sentinel.frozen]
        _until(lambda: {sentinel.primary() for sentinel in awake} & {r.port for r in self.replicas}, "no failover", timeout)
        port = next(port for port in (sentinel.primary() for sentinel in awake) if port != old.port)
        self.primary = next(server for server in self.servers if server.port == port)

    def restart(self, server: RedisProcess) -> None:
        """Start a server that was killed, as a replica of the primary of now."""
        server.options += ["--replicaof", "127.0.0.1", str(self.primary.port)]
        server.start()
        del server.options[-3:]

    def close(self) -> None:
        for process in (*self.sentinels, *self.servers):
            process.close()


def _knows(sentinel: Sentinel) -> tuple[int, int]:
    with sentinel.client() as client:
        state: dict[str, Any] = client.sentinel_master(NAME)
    return int(state["num-other-sentinels"]), int(state["num-slaves"])


def _offset(replica: RedisProcess) -> int:
    with replica.client() as client:
        return int(client.info("replication")["slave_repl_offset"])


def _until(condition: Callable[[], object], otherwise: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
