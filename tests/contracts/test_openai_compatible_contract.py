"""The openai_compatible engine keeps every promise of the port: on the stand-in, whichever server that stands for."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt, PromptMessage
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from tests.contracts.engine_contract import EngineContract, Request
from tests.support.openai_engines import MODEL, started
from tests.support.openai_server import Continues, OpenAIServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration


class TestOpenAICompatible(EngineContract):
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
        self.server = server
        async with started(server, model=(*self.thinking, MODEL)[0], **self.patient, **self.config) as engine:
            yield engine

    @pytest.fixture(autouse=True)
    async def nothing_left_behind(self, engine: Engine) -> AsyncIterator[None]:
        """The same promise; the stand-in's connections live on this loop, too, and end when they see nobody there."""
        before = asyncio.all_tasks()
        yield
        await engine.close()
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()}, timeout=1.0)  # type: ignore[arg-type]

    async def idle(self, engine: Engine) -> bool:
        return await until(lambda: self.server.counts.live == 0 and engine.status.busy == 0, timeout=1.0)

    async def pace(self, per_second: float | None) -> None:
        self.server.faults.tokens_per_second = per_second

    async def silence(self) -> bool:
        self.server.faults.hang_after = 3
        return True

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        long = Prompt(prompt.personality, (PromptMessage(Role.USER, "word " * 40_000),))
        return [(Prompt(prompt.personality, prompt.messages, "no-such-model"), options, Prefix()), (long, options, Prefix())]


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
