"""Whole turns on the openai_compatible engine, over a real Redis: stored, stopped at once, continued after a death."""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.events import Failed
from tests.contracts.remote_contract import ASK, RemoteTurnsContract
from tests.support.openai_engines import MODEL, started
from tests.support.openai_server import Continues, OpenAIServer
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening

pytestmark = pytest.mark.integration


class TestOpenAICompatibleTurns(RemoteTurnsContract):
    """On the stand-in, as either kind of server that goes on."""

    model = replies_as = MODEL

    @pytest.fixture(params=["trailing", "vllm"])
    def continues(self, request: pytest.FixtureRequest) -> Continues:
        return request.param  # type: ignore[no-any-return]

    @pytest.fixture
    async def server(self, continues: Continues) -> AsyncIterator[OpenAIServer]:
        async with OpenAIServer(MODEL, continues=continues) as server:
            yield server

    @pytest.fixture
    async def stack(self, redis_server: RedisProcess, server: OpenAIServer) -> AsyncIterator[Stack]:
        async with started(server) as engine, Stack(redis_server.url, engine=engine) as stack:
            yield stack

    @pytest.mark.parametrize("fault", [{"anew_after": 12}, {"prefix": "refuse"}], ids=["begins anew", "refuses"])
    async def test_where_the_server_does_not_go_on_what_was_said_is_kept_and_nothing_is_said_twice(
        self, stack: Stack, server: OpenAIServer, fault: dict[str, object]
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
        assert self.right_reply(server).startswith(said.text)
