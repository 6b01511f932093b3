"""Connections that stay with the primary: they ask where it is, ask the server who it is, and are dropped when it moves.

A connection to a primary that has been replaced is worse than none: it hangs, or it takes writes that nobody will keep.
So each new connection asks the Sentinels, if there are any, and the server itself, before its first use; after any trouble
the connections from before it are not used again; and one that reaches another primary takes the rest along.
"""

import asyncio
import logging
import weakref
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serve_app.state.sentinel import Address, Sentinels

WAITS_SINCE = (7, 0)
"""Older servers ignore `min-replicas-to-write` inside scripts (law 8)."""

log = logging.getLogger(__name__)


class UnfitRedis(RedisError):
    """This Redis cannot keep what Aurora promises here."""


class Primary:
    """What the connections of one client know of the server behind them."""

    def __init__(self, *, replicas: int, greet_within_s: float, sentinels: Sentinels | None = None) -> None:
        """Look for it by `sentinels`, or not; it shall be one whose writes can be waited for on `replicas` replicas.

        A server that has accepted a connection has `greet_within_s` to say what it is: a frozen one accepts, and says nothing.
        """
        self.sentinels = sentinels
        self.greet_within_s = greet_within_s
        self.trusted_since = 0.0
        self._replicas = replicas
        self._address: Address | None = None
        self._looked_at: Address | None = None
        self._connections: weakref.WeakSet[AbstractConnection] = weakref.WeakSet()

    def track(self, connection: AbstractConnection) -> None:
        """Count a connection among those that are dropped when the primary moves."""
        self._connections.add(connection)

    def distrust(self, before: float) -> None:
        """Use no connection again that was made before this time of the loop's: something went wrong after it."""
        self.trusted_since = max(self.trusted_since, before)

    async def greet(self, connection: AbstractConnection, address: Address | None) -> None:
        """Ask a server just connected to what it is.

        Raises:
            ConnectionError: it is not the primary, whatever the Sentinels say.
            UnfitRedis: it is too old to wait for replicas.
        """
        if self.sentinels is not None:
            role = (await _ask(connection, "ROLE"))[0].decode()
            if role != "master":
                raise RedisConnectionError(f"The Redis at {address} is not the primary but a {role}.")
        if self._replicas and (address is None or self._looked_at != address):
            await self._check_version(connection)
            if self._looked_at != address:  # else another connection has looked meanwhile
                self._looked_at = address
                await self._check_settings(connection)

    async def _check_version(self, connection: AbstractConnection) -> None:
        info = (await _ask(connection, "INFO", "server")).decode()
        version = next(line.partition(":")[2] for line in info.split() if line.startswith("redis_version:"))
        if tuple(int(part) for part in version.split(".")[:2]) < WAITS_SINCE:
            wanted = f"waiting for {self._replicas} replica(s) needs 7.0 or newer"
            raise UnfitRedis(f"This Redis is version {version}; {wanted}: upgrade it, or set AURORA_DURABILITY_REPLICAS to 0.")

    async def _check_settings(self, connection: AbstractConnection) -> None:
        """Warn where the server's settings promise less than Aurora does."""
        try:
            settings = {name: await self._setting(connection, name) for name in ("min-replicas-to-write", "maxmemory-policy")}
        except (ResponseError, LookupError) as refused:
            log.info("Redis does not show its settings (%s); docs/durability.md says what they must be.", refused)
            return
        if int(settings["min-replicas-to-write"]) < self._replicas:
            log.warning(
                "min-replicas-to-write of this Redis is %s: set %d, else a primary that was cut off goes on taking pieces.",
                settings["min-replicas-to-write"],
                self._replicas,
            )
        if settings["maxmemory-policy"] != "noeviction":
            log.warning(
                "maxmemory-policy of this Redis is %s: set noeviction, else it forgets what was acknowledged.",
                settings["maxmemory-policy"],
            )

    @staticmethod
    async def _setting(connection: AbstractConnection, name: str) -> str:
        return str((await _ask(connection, "CONFIG", "GET", name))[1].decode())

    async def moved_to(self, address: Address) -> None:
        """Note where the primary is; if it was elsewhere before, drop every connection to there, also those in use."""
        before, self._address = self._address, address
        if before in (None, address):
            return
        log.warning("The primary Redis is %s now, no longer %s.", address, before)
        for connection in list(self._connections):
            if connection.is_connected and _address_of(connection) != address:
                await connection.disconnect(nowait=True)  # whoever waits on it for an answer fails, and tries again


async def _ask(connection: AbstractConnection, *command: str) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


def _address_of(connection: AbstractConnection) -> Address | None:
    host, port = getattr(connection, "host", None), getattr(connection, "port", None)
    return Address(host, int(port)) if host and port else None


class _Loyal(AbstractConnection):
    """A connection that is used only while the server behind it is the primary, as far as its client knows."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary
        self._made = 0.0
        primary.track(self)

    async def connect(self) -> None:
        """Connect if there is no connection, or none that can be trusted; the pool calls this before each use."""
        if self._made < self._primary.trusted_since and self.is_connected:
            await self.disconnect(nowait=True)
        await super().connect()  # type: ignore[no-untyped-call]

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:
            return
        self._made = asyncio.get_running_loop().time()
        await super().connect_check_health(check_health, retry_socket_connect)

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            async with asyncio.timeout(self._primary.greet_within_s):
                await super().on_connect_check_health(check_health)
                await self._primary.greet(self, _address_of(self))
        except TimeoutError:
            raise RedisTimeoutError("The server accepts connections and says nothing.") from None


class TcpConnection(_Loyal, Connection):
    """To a fixed host and port."""


class TlsConnection(_Loyal, SSLConnection):
    """The same, encrypted."""


class SocketConnection(_Loyal, UnixDomainSocketConnection):
    """To a socket file."""


class SentinelConnection(_Loyal, Connection):
    """To wherever the Sentinels say, each time anew."""

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect to the first server that the Sentinels name and that says itself that it is the primary."""
        if self.is_connected:
            return
        assert self._primary.sentinels is not None
        failure: Exception | None = None
        for address in await self._primary.sentinels.candidates():
            self.host, self.port = address
            try:
                await super().connect_check_health(check_health, retry_socket_connect)
            except (RedisConnectionError, RedisTimeoutError) as error:
                failure = failure or error
            else:
                await self._primary.moved_to(address)
                return
        raise failure or RedisConnectionError("The Sentinels name no primary.")


class Pool(ConnectionPool):
    """Connections to one primary."""

    def __init__(self, primary: Primary, **options: Any) -> None:
        """Make connections as `options` say, all of which know `primary`."""
        super().__init__(primary=primary, **options)
        self.primary = primary
