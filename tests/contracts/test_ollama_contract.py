"""The ollama engine keeps every promise of the port on the stand-in, however that behaves."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from serve_app.chat.engine import Engine
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


class TestOllamaWhoseChunksCutCharacters(TestOllama):
    """Three bytes come at a time."""

    faults: ClassVar[dict[str, object]] = {"chunk_bytes": 3}


class TestOllamaThatSaysOneByteAtATime(TestOllama):
    """So that every character is cut wherever it can be."""

    faults: ClassVar[dict[str, object]] = {"chunk_bytes": 1}
