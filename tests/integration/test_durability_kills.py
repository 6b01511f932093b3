"""The primary is killed in the instant after an acknowledgement: what was acknowledged is there (law 8)."""

import asyncio
from contextlib import aclosing

import httpx
import pytest

from tests.drills.loopback_kills import kills, stored
from tests.support.redis_trio import RedisTrio
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.integration
KILLS = 12
"""The drill does a hundred, see `tests.drills.loopback_kills`."""
AT_ONCE = 20


async def test_what_was_acknowledged_in_the_instant_before_is_there(replicated: RedisTrio) -> None:
    async with aclosing(kills(replicated, KILLS)) as them:
        done = [kill async for kill in them]
    assert [kill.kept for kill in done] == [True] * KILLS
    assert {kill.after for kill in done} == {"200", "accepted"}
    print(f"\nthe next acknowledgement came after {max(kill.again_s for kill in done):.2f} s at most")


async def test_of_many_messages_at_once_every_one_that_got_its_200_is_there_after_a_failover_by_sentinels(
    trio: RedisTrio,
) -> None:
    async with (
        Stack(trio.url, replicas=1) as stack,
        stack.serving() as base,
        httpx.AsyncClient(base_url=base, timeout=60) as http,
    ):

        async def ask(number: int) -> tuple[str, list[str]]:
            body = {"client_id": f"client{number}", "message": f"Remember {number}", "options": {"words": 5}}
            answer = (await http.post("/api/chat", json=body)).json()
            return answer["conversation_id"], [body["message"], answer["response"]]

        asked = [asyncio.create_task(ask(number)) for number in range(AT_ONCE)]
        acknowledged, late = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        trio.primary.kill()
        await asyncio.to_thread(trio.until_failed_over)
        for task in acknowledged:
            conversation_id, messages = task.result()
            assert stored(trio.primary, conversation_id) == messages
        for conversation_id, messages in await asyncio.gather(*asked):  # the others are answered too, and all of them once
            history = f"/api/conversations/{conversation_id}/history"

            async def is_shown(history: str = history, messages: list[str] = messages) -> bool:
                return [message["content"] for message in (await http.get(history)).json()["messages"]] == messages

            await until(is_shown)
    print(f"\n{len(acknowledged)} had their 200 when the primary was killed, {len(late)} got it from the next one")
