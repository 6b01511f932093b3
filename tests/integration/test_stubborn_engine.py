"""An engine that does not let itself be stopped must not keep its turn open, nor write into it afterwards."""

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from serve_app.chat.engine import EnginePiece
from serve_app.chat.generate import STOP_WITHIN_S
from serve_app.chat.service import Ask
from tests.integration.test_engine_failures import QUICK, Playing
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.waiting import until, whole

pytestmark = pytest.mark.integration


async def test_a_turn_whose_engine_ignores_its_interruption_fails_all_the_same(
    redis_server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    released, went_on = asyncio.Event(), asyncio.Event()

    async def stubborn() -> AsyncGenerator[EnginePiece, None]:
        yield EnginePiece("one ")
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        went_on.set()
        yield EnginePiece("and what nobody wants any more")

    async with Stack(redis_server.url, engine=Playing(stubborn), run=QUICK) as stack:
        try:
            events = await whole(stack.service.ask(Ask(client_id="ann", message="Hello")), timeout=STOP_WITHIN_S + 8)
            end = events[-1]
            assert (end.type, getattr(end, "code", "")) == ("failed", "engine_timeout")
            assert getattr(end, "content", "") == "one "
            before = await stack.turns.read(end.turn_id)
        finally:
            released.set()
        await went_on.wait()
        await until(lambda: stack.generator.running == 0)
        assert await stack.turns.read(end.turn_id) == before
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
