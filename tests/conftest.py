"""Fixtures: a real Redis, Aurora in one process over it, and an environment without Aurora's variables."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess
from tests.support.redis_trio import RedisTrio, newest_redis
from tests.support.stack import Stack


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the developer's shell has set."""
    for name in list(os.environ):
        if name.startswith("AURORA_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def redis_server(_shared_redis: RedisProcess) -> RedisProcess:
    """A real Redis, empty. Shared between tests: do not kill it; take `own_redis` for that."""
    with _shared_redis.client() as client:
        client.flushall()
        client.script_flush()
    return _shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis for this test alone, to be killed and frozen."""
    server = RedisProcess(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def newest() -> str:
    """The path of a redis-server that can wait for replicas."""
    return newest_redis()


@pytest.fixture(scope="session")
def _shared_replicated(newest: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisTrio]:
    servers = RedisTrio(newest, tmp_path_factory.mktemp("replicated"), sentinels=0)
    try:
        servers.start()
        yield servers
    finally:
        servers.close()


@pytest.fixture
def replicated_redis(_shared_replicated: RedisTrio) -> RedisProcess:
    """An empty primary with two replicas. Shared between tests: take `replicated` to kill and freeze them."""
    with _shared_replicated.primary.client() as client:
        client.flushall()
        client.script_flush()
    return _shared_replicated.primary


@pytest.fixture
def replicated(newest: str, tmp_path: Path) -> Iterator[RedisTrio]:
    """A primary and two replicas for this test alone, without Sentinels."""
    servers = RedisTrio(newest, tmp_path, sentinels=0)
    try:
        servers.start()
        yield servers
    finally:
        servers.close()


@pytest.fixture
def trio(newest: str, tmp_path: Path) -> Iterator[RedisTrio]:
    """A primary, two replicas and three Sentinels for this test alone."""
    servers = RedisTrio(newest, tmp_path, sentinels=3)
    try:
        servers.start()
        yield servers
    finally:
        servers.close()


@pytest.fixture
async def stack(redis_server: RedisProcess) -> AsyncIterator[Stack]:
    """Aurora in one process, over a real Redis."""
    async with Stack(redis_server.url) as running:
        yield running
