"""The ollama engine keeps every promise of the port: on the stand-in, and on a real Ollama where there is one."""

import os
import shutil
from collections.abc import AsyncIterator
from typing import ClassVar

import httpx
import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt
from serve_app.chat.options import Options
from serve_app.engines import OllamaConfig, OllamaEngine
from tests.contracts.engine_contract import EngineContract, Request
from tests.contracts.remote_contract import RemoteEngineContract
from tests.support.ollama_engines import started
from tests.support.ollama_server import OllamaServer

pytestmark = pytest.mark.integration


class TestOllama(RemoteEngineContract):
    """On the stand-in, which says how its prompts end."""

    faults: ClassVar[dict[str, object]] = {}
    thinking: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    async def server(self) -> AsyncIterator[OllamaServer]:
        async with OllamaServer("llama3.2", thinking=self.thinking) as server:
            server.faults.change(self.faults)
            yield server

    @pytest.fixture
    async def engine(self, server: OllamaServer) -> AsyncIterator[Engine]:
        async with started(server, model=(*self.thinking, "llama3.2")[0], silence_s=2.0) as engine:
            yield engine


class TestOllamaWhoseTemplateDropsWhitespace(TestOllama):
    """The whitespace at the end of what was said is said again; it is taken off."""

    faults: ClassVar[dict[str, object]] = {"prefix": "trim"}


class TestOllamaThatDoesNotTellHowItsPromptsEnd(TestOllama):
    """What it says is looked at, and none of it gets lost."""

    faults: ClassVar[dict[str, object]] = {"renders": False}


class TestOllamaWithAThinkingModel(TestOllama):
    """It is told not to think."""

    thinking: ClassVar[tuple[str, ...]] = ("qwen3",)


class TestRealOllama(EngineContract):
    """On the Ollama of this machine, if one is running and has a model."""

    repeatable: ClassVar[bool] = False
    """Not to the letter: the same seed on a GPU that computes several replies at once may give another word."""

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        url = os.environ.get("OLLAMA_HOST") or "http://127.0.0.1:11434"
        if shutil.which("ollama") is None:
            pytest.skip("there is no `ollama` on this machine")
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
                models = [one["name"] for one in (await client.get(f"{url}/api/tags")).json()["models"]]
        except (httpx.HTTPError, ValueError, KeyError):
            pytest.skip(f"there is an `ollama` here, but none serves at {url}: start `ollama serve`")
        if not models:
            pytest.skip("the `ollama` of this machine has no model: `ollama pull llama3.2`")
        engine = OllamaEngine(OllamaConfig(model=models[0], pull=False, context_window=2_048), url=url)
        await engine.start()
        yield engine
        await engine.close()

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        return [(Prompt(prompt.personality, prompt.messages, "no-such-model"), options, Prefix())]
