"""How Redis is reached: one client for commands, with the rules that peers learned the hard way.

Async only; every command has a timeout (a half-open connection must not hang a turn); retries are ours, so that each
caller decides how long it can wait; what means "Redis is away" is decided here and nowhere else.
"""

import re
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection as Connection
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serve_app.state.primary import (
    Pool,
    Primary,
    SentinelConnection,
    SocketConnection,
    TcpConnection,
    TlsConnection,
    UnfitRedis,
)
from serve_app.state.sentinel import Sentinels, SentinelUrl

COMMAND_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 1.0
HANDSHAKE_S = 0.5
"""For each step of a connection found through Sentinels: where a primary has vanished or is frozen, the next try, which
finds the new one, must not come late."""
_AWAY = re.compile(r"(?:^|: -)(?:NOREPLICAS|MASTERDOWN|LOADING|MISCONF|READONLY|OOM|UNKILLABLE|BUSY|CLUSTERDOWN)\b")
"""Redis before 7 wraps what a command in a script ran into: `Error running script (…): @user_script: 1: -READONLY …`."""
_KINDS: dict[type, type] = {SSLConnection: TlsConnection, UnixDomainSocketConnection: SocketConnection}


def connect(url: str, *, replicas: int = 0) -> Redis:
    """Return a client for the Redis at `url`, which is one of `redis://`, `rediss://`, `unix://` and `sentinel://`.

    Opens nothing yet. With `replicas` above 0, a server that cannot wait for replicas is refused at the first connection.

    Raises:
        ValueError: the URL is not one of Redis.
    """
    options: dict[str, Any]
    if url.startswith("sentinel://"):
        asked = SentinelUrl.parse(url)
        sentinels = Sentinels(asked.sentinels, asked.name)
        primary = Primary(replicas=replicas, greet_within_s=HANDSHAKE_S, sentinels=sentinels)
        options = {"connection_class": SentinelConnection, "socket_connect_timeout": HANDSHAKE_S}
        options |= {"username": asked.username, "password": asked.password, "db": asked.db}
    else:
        primary = Primary(replicas=replicas, greet_within_s=COMMAND_TIMEOUT_S)
        options = {"socket_connect_timeout": CONNECT_TIMEOUT_S, **parse_url(url)}
        options["connection_class"] = _KINDS.get(options.get("connection_class", TcpConnection), TcpConnection)
    if options["connection_class"] is not SocketConnection:
        options["socket_keepalive"] = True
    pool = Pool(
        primary,
        protocol=2,
        socket_timeout=COMMAND_TIMEOUT_S,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
        max_connections=512,
        health_check_interval=0,
        **options,
    )
    return Redis.from_pool(pool)


def listening_connection(client: Redis) -> Connection:
    """Return an unopened connection for pub/sub: to the same Redis, without a read timeout (silence is normal there)."""
    options = dict(client.connection_pool.connection_kwargs)
    options["socket_timeout"] = None
    return client.connection_pool.connection_class(**options)


def distrust(client: Redis, before: float, error: BaseException) -> None:
    """Use no connection of `client` again that was made before this time of the loop's, because of `error`.

    A timeout, READONLY or NOREPLICAS may be the last sign of a primary that has been replaced.
    """
    pool = client.connection_pool
    if isinstance(pool, Pool) and not isinstance(error, MaxConnectionsError):  # that one says nothing about the server
        pool.primary.distrust(before)


def is_away(error: BaseException) -> bool:
    """Say whether `error` means that Redis cannot take writes now, but may again (law 9)."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | ReadOnlyError | OutOfMemoryError | OSError):
        return True
    return isinstance(error, ResponseError) and _AWAY.search(str(error)) is not None


__all__ = [
    "COMMAND_TIMEOUT_S",
    "Connection",
    "Redis",
    "RedisError",
    "UnfitRedis",
    "connect",
    "distrust",
    "is_away",
    "listening_connection",
]
