"""Whoever is cancelled while asking Redis ends, at whatever moment that comes."""

import asyncio
import random

import pytest

from tests.support.redis_process import RedisProcess
from tests.support.turn_tools import Store, store

pytestmark = pytest.mark.integration


async def ask_for_ever(at: Store) -> None:
    while True:
        await at.turns.sweep(token="s", batch=1)


async def test_a_task_that_asks_redis_again_and_again_ends_when_cancelled(redis_server: RedisProcess) -> None:
    async with store(redis_server.url) as at:
        for _ in range(500):
            task = asyncio.create_task(ask_for_ever(at))
            await asyncio.sleep(random.random() * 0.001)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=1)
            if not done:
                task.cancel()
                await asyncio.wait({task}, timeout=1)
            assert done, "the cancellation was swallowed"
            assert task.cancelled()
