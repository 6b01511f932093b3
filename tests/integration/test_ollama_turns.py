"""Whole turns on the ollama engine, over a real Redis: stored to the letter, stopped at once, continued after a death."""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.events import Done, Failed
from serve_app.chat.generate import GeneratorConfig
from tests.contracts.remote_contract import ASK, RemoteTurnsContract
from tests.support.ollama_engines import MODEL, started
from tests.support.ollama_server import OllamaServer
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening

pytestmark = pytest.mark.integration


class TestOllamaTurns(RemoteTurnsContract):
    """On the stand-in."""

    model, replies_as = MODEL, f"{MODEL}:latest"

    @pytest.fixture
    async def server(self) -> AsyncIterator[OllamaServer]:
        async with OllamaServer(MODEL, thinking=["qwen3"]) as server:
            yield server

    @pytest.fixture
    async def stack(self, redis_server: RedisProcess, server: OllamaServer) -> AsyncIterator[Stack]:
        async with started(server) as engine, Stack(redis_server.url, engine=engine) as stack:
            yield stack

    @pytest.mark.parametrize("renders", [True, False], ids=["a server that tells", "a server that does not tell"])
    async def test_where_the_model_does_not_go_on_what_was_said_is_kept_and_nothing_is_said_twice(
        self, redis_server: RedisProcess, server: OllamaServer, renders: bool
    ) -> None:
        server.faults.change({"tokens_per_second": 20, "renders": renders})
        if renders:
            server.faults.prefix = "restart"
        async with (
            started(server) as engine,
            Stack(redis_server.url, engine=engine) as stack,
            Listening(stack.service.ask(ASK)) as heard,
        ):
            await heard.pieces(6)
            server.faults.change({"prefix": "restart", "tokens_per_second": None})
            await stack.take_over(heard.events[0].turn_id)
            events = await heard.end()
        failed = events[-1]
        assert isinstance(failed, Failed)
        assert failed.code == "continuation_refused"
        assert failed.retryable
        said = Assembled.of(events)
        assert said.proven()
        assert said.text
        assert self.right_reply(server).startswith(said.text)

    async def test_a_model_that_thinks_for_long_is_not_taken_for_one_that_hangs(
        self, redis_server: RedisProcess, server: OllamaServer
    ) -> None:
        server.faults.tokens_per_second = 10  # fifteen thoughts: more than a second of them
        quick = GeneratorConfig(first_piece_timeout_s=0.5, piece_timeout_s=0.5, beat_s=0.05)
        async with (
            started(server, model="qwen3", think=True) as engine,
            Stack(redis_server.url, engine=engine, run=quick) as stack,
            Listening(stack.service.ask(ASK)) as heard,
        ):
            await heard.first("started")
            await heard.pieces(1)
            server.faults.tokens_per_second = None
            events = await heard.end()
        assert isinstance(events[-1], Done)
        assert "Let me think" not in events[-1].content
