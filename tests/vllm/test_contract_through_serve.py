"""The engine vllm keeps every promise of the port also where it lives: in a replica of a real Serve application."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.chat.engine import Engine
from tests.support.served_engines import DeploymentHandle, ServedEngine, engine_host
from tests.support.waiting import until
from tests.vllm.engines import config, ready
from tests.vllm.test_contract import TestVllmWithAByteLevelTokenizer as Contract

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def host() -> Iterator[DeploymentHandle[Any]]:
    with engine_host() as host:
        yield host


@pytest.fixture(scope="module")
async def _served(host: DeploymentHandle[Any], byte_folder: Path) -> AsyncIterator[ServedEngine]:
    engine = ServedEngine(host, config(byte_folder))
    await engine.start()
    yield engine
    await engine.close()


class TestVllmThroughServe(Contract):
    @pytest.fixture
    async def engine(self, _served: ServedEngine) -> Engine:
        return await ready(_served)

    @pytest.fixture(autouse=True)
    async def nothing_left_behind(self, engine: Engine) -> AsyncIterator[None]:
        """The same promise; Serve's own tasks for a call end a moment after it."""
        before = asyncio.all_tasks()
        yield
        assert await self.idle(engine)
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()}, timeout=1.0)  # type: ignore[arg-type]

    async def idle(self, engine: Engine) -> bool:
        assert isinstance(engine, ServedEngine)
        served = engine

        async def nothing_to_do() -> bool:
            return (await served.look()).busy == 0

        return await until(nothing_to_do, timeout=2.0)


del Contract  # else it is collected here, too
