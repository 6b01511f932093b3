"""Whole turns on the openai_compatible engine, over a real Redis: stored, stopped at once, continued after a death."""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.events import Done, Failed, Takeover
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from tests.support import ollama_replies
from tests.support.openai_engines import MODEL, started
from tests.support.openai_server import Continues, OpenAIServer
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
ASK = Ask(client_id="ann", message="Tell me of the lighthouse", options=Options(max_tokens=64))


@pytest.fixture(params=["trailing", "vllm"])
def continues(request: pytest.FixtureRequest) -> Continues:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def server(continues: Continues) -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(MODEL, continues=continues) as server:
        yield server


@pytest.fixture
async def stack(redis_server: RedisProcess, server: OpenAIServer) -> AsyncIterator[Stack]:
    async with started(server) as engine, Stack(redis_server.url, engine=engine) as stack:
        yield stack


def right_reply(server: OpenAIServer) -> str:
    """Return the reply to the first request that the server got."""
    return ollama_replies.reply(MODEL, server.counts.chats[0]["messages"])


async def test_an_answer_is_stored_whole(stack: Stack, server: OpenAIServer) -> None:
    async with Listening(stack.service.ask(ASK)) as heard:
        events = await heard.end()
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.model, done.content) == (MODEL, right_reply(server))
    said = Assembled.of(events)
    assert said.proven()
    assert said.text == done.content
    assert done.usage.completion_tokens == len(ollama_replies.tokens_of(done.content))
    stored = (await stack.service.turn(done.turn_id)).reply
    assert stored is not None
    assert stored.content == done.content


async def test_a_stopped_turn_stops_the_generation_within_a_second(stack: Stack, server: OpenAIServer) -> None:
    server.faults.tokens_per_second = 20
    async with Listening(stack.service.ask(ASK)) as heard:
        await heard.pieces(3)
        assert server.counts.live == 1
        await stack.service.stop(heard.events[0].turn_id)
        await until(lambda: server.counts.live == 0, timeout=1.0)
        events = await heard.end()
    assert events[-1].type == "stopped"
    assert right_reply(server).startswith(Assembled.of(events).text)


async def test_after_the_death_of_its_run_a_turn_goes_on_to_the_letter(stack: Stack, server: OpenAIServer) -> None:
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


@pytest.mark.parametrize("fault", [{"anew_after": 12}, {"prefix": "refuse"}], ids=["begins anew", "refuses"])
async def test_where_the_server_does_not_go_on_what_was_said_is_kept_and_nothing_is_said_twice(
    stack: Stack, server: OpenAIServer, fault: dict[str, object]
) -> None:
    server.faults.tokens_per_second = 20
    async with Listening(stack.service.ask(ASK)) as heard:
        await heard.pieces(16)
        server.faults.change({**fault, "tokens_per_second": None})
        await stack.take_over(heard.events[0].turn_id)
        events = await heard.end()
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == ("continuation_refused", True)
    said = Assembled.of(events)
    assert said.proven()
    assert len(said.text) > 32
    assert right_reply(server).startswith(said.text)


async def test_a_server_that_dies_ends_the_turn_as_unavailable_with_what_was_said(stack: Stack, server: OpenAIServer) -> None:
    server.faults.close_after = 5
    async with Listening(stack.service.ask(ASK)) as heard:
        events = await heard.end()
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "engine_unavailable"
    assert Assembled.of(events).text == "".join(ollama_replies.tokens_of(right_reply(server))[:5])
