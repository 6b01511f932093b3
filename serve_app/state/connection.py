"""How Redis is reached: one client for commands, with the rules that peers learned the hard way.

Async only; every command has a timeout (a half-open connection must not hang a turn); retries are ours, so that each
caller decides how long it can wait; what means "Redis is away" is decided here and nowhere else.
"""

import re

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection as Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

COMMAND_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 1.0
_AWAY = re.compile(r"(?:^|: -)(?:NOREPLICAS|MASTERDOWN|LOADING|MISCONF|READONLY|OOM|UNKILLABLE|BUSY|CLUSTERDOWN)\b")
"""Redis before 7 wraps what a command in a script ran into: `Error running script (…): @user_script: 1: -READONLY …`."""


def connect(url: str) -> Redis:
    """Return a client for the Redis at `url`. Opens nothing yet.

    Raises:
        ValueError: the URL is not one of Redis.
    """
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=COMMAND_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        max_connections=512,
        health_check_interval=0,
    )


def listening_connection(client: Redis) -> Connection:
    """Return an unopened connection for pub/sub: to the same Redis, without a read timeout (silence is normal there)."""
    options = dict(client.connection_pool.connection_kwargs)
    options["socket_timeout"] = None
    return client.connection_pool.connection_class(**options)


def is_away(error: BaseException) -> bool:
    """Say whether `error` means that Redis cannot take writes now, but may again (law 9)."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | ReadOnlyError | OutOfMemoryError | OSError):
        return True
    return isinstance(error, ResponseError) and _AWAY.search(str(error)) is not None


__all__ = ["COMMAND_TIMEOUT_S", "Connection", "Redis", "RedisError", "connect", "is_away", "listening_connection"]
