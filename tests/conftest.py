"""Fixtures: a real Redis, Aurora in one process over it, and an environment without Aurora's variables."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess
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


@pytest.fixture
async def stack(redis_server: RedisProcess) -> AsyncIterator[Stack]:
    """Aurora in one process, over a real Redis."""
    async with Stack(redis_server.url) as running:
        yield running
