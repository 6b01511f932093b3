"""Whole turns on the ollama engine, over a real Redis: stored to the letter, stopped at once, continued after a death."""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.events import Done, Failed, Takeover
from serve_app.chat.generate import GeneratorConfig
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from tests.support import ollama_replies
from tests.support.ollama_engines import MODEL, started
from tests.support.ollama_server import OllamaServer
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
ASK = Ask(client_id="ann", message="Tell me of the lighthouse", options=Options(max_tokens=64))


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    async with OllamaServer(MODEL, thinking=["qwen3"]) as server:
        yield server


@pytest.fixture
async def stack(redis_server: RedisProcess, server: OllamaServer) -> AsyncIterator[Stack]:
    async with started(server) as engine, Stack(redis_server.url, engine=engine) as stack:
        yield stack


def right_reply(server: OllamaServer, name: str = f"{MODEL}:latest") -> str:
    """Return the reply to the first request for a whole one that the server got."""
    first = next(chat for chat in server.counts.chats if chat["messages"][-1]["role"] == "user")
    return ollama_replies.reply(name, first["messages"])


async def test_an_answer_is_stored_whole(stack: Stack, server: OllamaServer) -> None:
    async with Listening(stack.service.ask(ASK)) as heard:
        events = await heard.end()
    done = events[-1]
    assert isinstance(done, Done)
    assert done.model == MODEL
    assert done.content == right_reply(server)
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == done.content
    assert done.usage.completion_tokens == len(ollama_replies.tokens_of(done.content))
    stored = (await stack.service.turn(done.turn_id)).reply
    assert stored is not None
    assert stored.content == done.content


async def test_a_stopped_turn_stops_the_generation_within_a_second(stack: Stack, server: OllamaServer) -> None:
    server.faults.tokens_per_second = 20
    async with Listening(stack.service.ask(ASK)) as heard:
        await heard.pieces(3)
        assert server.counts.live == 1
        await stack.service.stop(heard.events[0].turn_id)
        await until(lambda: server.counts.live == 0, timeout=1.0)
        events = await heard.end()
    assert events[-1].type == "stopped"
    assert right_reply(server).startswith(Assembled.of(events).text)


async def test_after_the_death_of_its_run_a_turn_goes_on_to_the_letter(stack: Stack, server: OllamaServer) -> None:
    server.faults.tokens_per_second = 20
    async with Listening(stack.service.ask(ASK)) as heard:
        for deaths in (1, 2):
            await heard.pieces(5 * deaths)
            await stack.take_over(heard.events[0].turn_id)
        server.faults.tokens_per_second = None
        events = await heard.end()
    assert isinstance(events[-1], Done)
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == right_reply(server)
    assert sum(isinstance(event, Takeover) for event in events) == 2
    assert [chat["messages"][-1]["role"] for chat in server.counts.chats] == ["user", "assistant", "assistant"]
    assert server.counts.live == 0


@pytest.mark.parametrize("renders", [True, False], ids=["a server that tells", "a server that does not tell"])
async def test_where_the_model_does_not_go_on_what_was_said_is_kept_and_nothing_is_said_twice(
    redis_server: RedisProcess, server: OllamaServer, renders: bool
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
    assert right_reply(server).startswith(said.text)


async def test_a_server_that_dies_ends_the_turn_as_unavailable_with_what_was_said(stack: Stack, server: OllamaServer) -> None:
    server.faults.close_after = 5
    async with Listening(stack.service.ask(ASK)) as heard:
        events = await heard.end()
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "engine_unavailable"
    assert Assembled.of(events).text == "".join(ollama_replies.tokens_of(right_reply(server))[:5])


async def test_a_model_that_thinks_for_long_is_not_taken_for_one_that_hangs(
    redis_server: RedisProcess, server: OllamaServer
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
