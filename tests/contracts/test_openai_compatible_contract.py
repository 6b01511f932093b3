"""The openai_compatible engine keeps every promise of the port: on the stand-in, whichever server that stands for."""

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from serve_app.chat.engine import Engine, Prompt
from serve_app.chat.options import Options
from tests.contracts.remote_contract import RemoteEngineContract
from tests.support.openai_engines import MODEL, started
from tests.support.openai_server import Continues, OpenAIServer

pytestmark = pytest.mark.integration


class TestOpenAICompatible(RemoteEngineContract):
    """As llama.cpp's server: an assistant message at the end is gone on from."""

    continues: ClassVar[Continues] = "trailing"
    thinking: ClassVar[tuple[str, ...]] = ()
    faults: ClassVar[dict[str, object]] = {}
    config: ClassVar[dict[str, object]] = {}
    patient: ClassVar[dict[str, object]] = {"first_token_s": 5.0, "silence_s": 2.0}
    """Hundreds of replies, on a machine that may be busy: none of them hangs."""

    @pytest.fixture
    async def server(self) -> AsyncIterator[OpenAIServer]:
        async with OpenAIServer(MODEL, thinking=self.thinking, continues=self.continues) as server:
            server.faults.change(self.faults)
            yield server

    @pytest.fixture
    async def engine(self, server: OpenAIServer) -> AsyncIterator[Engine]:
        async with started(server, model=(*self.thinking, MODEL)[0], **self.patient, **self.config) as engine:
            yield engine


class TestRemoteVllm(TestOpenAICompatible):
    """It goes on where it is told to."""

    continues: ClassVar[Continues] = "vllm"


class TestServerThatEchoesWhatWasSaid(TestOpenAICompatible):
    """What was said comes once more, and is taken off."""

    faults: ClassVar[dict[str, object]] = {"prefix": "restart"}

    async def test_cut_anywhere_a_continuation_is_the_rest_to_the_letter(
        self, engine: Engine, prompt: Prompt, options: Options
    ) -> None:
        """From twelve characters on: less may well come twice in a row, so it cannot be told from a continuation."""
        whole = await self.reply(engine, prompt, options)
        for cut in range(len(whole) + 1):
            if cut == 0 or len(whole[:cut].strip()) >= 12:
                assert whole[:cut] + await self.reply(engine, prompt, options, whole[:cut]) == whole

    async def test_a_continuation_of_the_whole_reply_says_nothing(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        """With a sign of life for each piece of the echo."""
        assert await self.reply(engine, prompt, options, await self.reply(engine, prompt, options)) == ""


class TestServerWhoseChunksCutCharacters(TestOpenAICompatible):
    """Three bytes come at a time."""

    faults: ClassVar[dict[str, object]] = {"chunk_bytes": 3}


class TestServerWithAThinkingModel(TestOpenAICompatible):
    """It is told not to think where it goes on, as the configuration has it."""

    thinking: ClassVar[tuple[str, ...]] = ("qwen3",)
    config: ClassVar[dict[str, object]] = {"extra_body_continuing": {"chat_template_kwargs": {"enable_thinking": False}}}
