"""What every engine promises that asks a server, over its stand-in: bare, and in whole turns over a real Redis.

A stand-in has `counts` (what was asked of it: `chats`, and how many replies are `live`) and `faults` (how it misbehaves).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt, PromptMessage
from serve_app.chat.events import Done, Failed, Takeover
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from tests.contracts.engine_contract import EngineContract, Request
from tests.support import ollama_replies
from tests.support.ollama_engines import prompt_of, reply_of
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening, until

ASK = Ask(client_id="ann", message="Tell me of the lighthouse", options=Options(max_tokens=64))


class RemoteEngineContract(EngineContract):
    """An engine of a stand-in. Fixtures to give: `server` (the stand-in) and `engine` (started)."""

    @pytest.fixture
    def server(self) -> Any:
        raise NotImplementedError("An engine's contract test gives the stand-in of its server.")

    @pytest.fixture(autouse=True)
    async def nothing_left_behind(self, server: Any, engine: Engine) -> AsyncIterator[None]:
        """The same promise; the stand-in's connections live on this loop, too, and end when they see nobody there."""
        self.server = server
        before = asyncio.all_tasks()
        yield
        await engine.close()
        await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()}, timeout=1.0)

    async def idle(self, engine: Engine) -> bool:
        return bool(await until(lambda: self.server.counts.live == 0 and engine.status.busy == 0, timeout=1.0))

    async def pace(self, per_second: float | None) -> None:
        self.server.faults.tokens_per_second = per_second

    async def silence(self) -> bool:
        self.server.faults.hang_after = 3
        return True

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        long = Prompt(prompt.personality, (PromptMessage(Role.USER, "word " * 40_000),))
        return [(long, options, Prefix())]

    async def test_closing_a_reply_stops_the_generation(self, server: Any, engine: Engine) -> None:
        server.faults.tokens_per_second = 20
        pieces = engine.generate(prompt_of("Hello!"), Options.model_validate({}), Prefix(), run="r1")
        await anext(pieces)
        assert server.counts.live == 1
        await pieces.aclose()
        await until(lambda: server.counts.live == 0, timeout=1.0)
        assert await self.idle(engine)

    async def test_cancelling_a_reader_stops_the_generation_also_where_the_server_hangs(
        self, server: Any, engine: Engine
    ) -> None:
        server.faults.hang_after = 3
        reader = asyncio.create_task(reply_of(engine, prompt_of("Hello!")))
        await until(lambda: server.counts.live == 1)
        reader.cancel()
        await until(lambda: server.counts.live == 0, timeout=1.0)
        assert await self.idle(engine)

    async def test_eight_replies_at_once_do_not_mix(self, server: Any, engine: Engine) -> None:
        server.faults.tokens_per_second = 100
        prompts = [prompt_of(f"Hello from number {number}!") for number in range(8)]
        replies = await asyncio.gather(*(reply_of(engine, prompt) for prompt in prompts))
        assert server.counts.most_live == 8
        server.faults.tokens_per_second = None
        assert replies == [await reply_of(engine, prompt) for prompt in prompts]
        assert len(set(replies)) == 8


class RemoteTurnsContract:
    """Whole turns on such an engine. Fixtures to give: `server` and `stack`; and the class variables."""

    model: str
    replies_as: str
    """The name under which the stand-in looks up what it says."""

    @pytest.fixture
    def server(self) -> Any:
        raise NotImplementedError("An engine's contract test gives the stand-in of its server.")

    @pytest.fixture
    def stack(self) -> Stack:
        raise NotImplementedError("An engine's contract test gives a stack with it.")

    def right_reply(self, server: Any) -> str:
        """Return the reply to the first request for a whole one that the server got."""
        first = next(chat for chat in server.counts.chats if chat["messages"][-1]["role"] == "user")
        return ollama_replies.reply(self.replies_as, first["messages"])

    async def test_an_answer_is_stored_whole(self, stack: Stack, server: Any) -> None:
        async with Listening(stack.service.ask(ASK)) as heard:
            events = await heard.end()
        done = events[-1]
        assert isinstance(done, Done)
        assert (done.model, done.content) == (self.model, self.right_reply(server))
        said = Assembled.of(events)
        assert said.proven()
        assert said.text == done.content
        assert done.usage.completion_tokens == len(ollama_replies.tokens_of(done.content))
        stored = (await stack.service.turn(done.turn_id)).reply
        assert stored is not None
        assert stored.content == done.content

    async def test_a_stopped_turn_stops_the_generation_within_a_second(self, stack: Stack, server: Any) -> None:
        server.faults.tokens_per_second = 20
        async with Listening(stack.service.ask(ASK)) as heard:
            await heard.pieces(3)
            assert server.counts.live == 1
            await stack.service.stop(heard.events[0].turn_id)
            await until(lambda: server.counts.live == 0, timeout=1.0)
            events = await heard.end()
        assert events[-1].type == "stopped"
        assert self.right_reply(server).startswith(Assembled.of(events).text)

    async def test_after_the_death_of_its_run_a_turn_goes_on_to_the_letter(self, stack: Stack, server: Any) -> None:
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
        assert said.text == self.right_reply(server)
        assert sum(isinstance(event, Takeover) for event in events) == 2
        assert [chat["messages"][-1]["role"] for chat in server.counts.chats] == ["user", "assistant", "assistant"]
        assert server.counts.live == 0

    async def test_a_server_that_dies_ends_the_turn_as_unavailable_with_what_was_said(self, stack: Stack, server: Any) -> None:
        server.faults.close_after = 5
        async with Listening(stack.service.ask(ASK)) as heard:
            events = await heard.end()
        failed = events[-1]
        assert isinstance(failed, Failed)
        assert failed.code == "engine_unavailable"
        assert Assembled.of(events).text == "".join(ollama_replies.tokens_of(self.right_reply(server))[:5])
