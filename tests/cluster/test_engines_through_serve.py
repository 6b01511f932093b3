"""Every engine keeps every promise of the port also where it lives: in a replica of a real Serve application."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt
from serve_app.chat.options import Options
from serve_app.engines import EngineConfig, OllamaConfig, ScriptedConfig
from tests.contracts import test_ollama_contract as ollama
from tests.contracts import test_openai_compatible_contract as openai
from tests.contracts.engine_contract import EngineContract, Request
from tests.support.ollama_engines import IMPATIENT, MODEL
from tests.support.ollama_server import OllamaServer
from tests.support.openai_engines import config_of
from tests.support.openai_server import OpenAIServer
from tests.support.served_engines import DeploymentHandle, ServedEngine, engine_host
from tests.support.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def host() -> Iterator[DeploymentHandle[Any]]:
    with engine_host() as host:
        yield host


@asynccontextmanager
async def served(host: DeploymentHandle[Any], config: EngineConfig) -> AsyncIterator[ServedEngine]:
    engine = ServedEngine(host, config)
    await engine.start()
    yield engine
    await engine.close()


async def is_idle(engine: Engine) -> bool:
    assert isinstance(engine, ServedEngine)
    served = engine

    async def nothing_to_do() -> bool:
        return (await served.look()).busy == 0

    return await until(nothing_to_do, timeout=1.0)


class TestScriptedThroughServe(EngineContract):
    @pytest.fixture
    def options(self) -> Options:
        return Options(max_tokens=24)  # a shorter reply than elsewhere: each cut of it is a call

    @pytest.fixture
    async def engine(self, host: DeploymentHandle[Any]) -> AsyncIterator[Engine]:
        async with served(host, ScriptedConfig()) as engine:
            yield engine

    @pytest.fixture(autouse=True)
    async def nothing_left_behind(self, engine: Engine) -> AsyncIterator[None]:
        """The same promise; Serve's own tasks for a call end a moment after it."""
        before = asyncio.all_tasks()
        yield
        await engine.close()
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()}, timeout=1.0)  # type: ignore[arg-type]

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        return [(prompt, options, Prefix("No reply of mine begins like this"))]


class TestOllamaThroughServe(ollama.TestOllama):
    @pytest.fixture
    async def engine(self, server: OllamaServer, host: DeploymentHandle[Any]) -> AsyncIterator[Engine]:
        async with served(host, OllamaConfig.model_validate({"model": MODEL, "url": server.url, **IMPATIENT})) as engine:
            yield engine

    async def idle(self, engine: Engine) -> bool:
        return await until(lambda: self.server.counts.live == 0, timeout=1.0) and await is_idle(engine)


class TestOpenAICompatibleThroughServe(openai.TestOpenAICompatible):
    @pytest.fixture
    async def engine(self, server: OpenAIServer, host: DeploymentHandle[Any]) -> AsyncIterator[Engine]:
        async with served(host, config_of(server)) as engine:
            yield engine

    async def idle(self, engine: Engine) -> bool:
        return await until(lambda: self.server.counts.live == 0, timeout=1.0) and await is_idle(engine)
