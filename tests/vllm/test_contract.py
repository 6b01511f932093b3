"""The engine vllm keeps every promise of the port, with two tokenizers: cut between any two pieces, it goes on to the letter."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt
from serve_app.chat.options import Options
from serve_app.engines import VllmEngine
from tests.contracts.engine_contract import EngineContract, Request, said_by, text_of
from tests.vllm.engines import COLD, ask, others


class TestVllmWithAByteLevelTokenizer(EngineContract):
    @pytest.fixture
    async def engine(self, byte_engine: VllmEngine) -> Engine:
        return byte_engine

    @pytest.fixture(autouse=True)
    async def nothing_left_behind(self, engine: Engine) -> AsyncIterator[None]:
        """The same promise, but the engine stays for the next test: starting it takes ten seconds."""
        before = asyncio.all_tasks()
        yield
        assert engine.status.busy == 0
        assert asyncio.all_tasks() <= before | {asyncio.current_task()}

    @pytest.fixture
    def refused(self) -> list[Request]:
        return [(ask("the other story " * 800), COLD, Prefix())]

    async def idle(self, engine: Engine) -> bool:
        assert isinstance(engine, VllmEngine)
        return engine.status.busy == 0 and await others(engine) == 0

    test_silence_is_an_engine_error_in_time_and_stops_the_work = None
    """Held by `test_processes.py`, with a stopped engine process."""

    async def test_a_piece_is_whole_characters(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        """Its weights are random, so it also says bytes that are no character: U+FFFD then, in the pieces as in the whole."""
        pieces = await said_by(engine, prompt, options)
        assert "".join(piece.text.encode().decode() for piece in pieces) == text_of(pieces)


class TestVllmWithACharacterTokenizer(TestVllmWithAByteLevelTokenizer):
    """Its template knows no system prompt, and it has stop strings."""

    @pytest.fixture
    async def engine(self, character_engine: VllmEngine) -> Engine:
        return character_engine

    @pytest.fixture
    def prompt(self) -> Prompt:
        return ask("Say “Grüße, 漢字 and 🌊” to my friend.")

    test_a_piece_is_whole_characters = EngineContract.test_a_piece_is_whole_characters
