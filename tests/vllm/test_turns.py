"""Turns on the engine vllm, over a real Redis: whole, and after the death of a run continued by token ids to the letter."""

import asyncio

from serve_app.chat.engine import Prompt, PromptMessage
from serve_app.chat.events import Done, Event, Takeover
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.engines import VllmEngine
from tests.contracts.engine_contract import said_by, text_of
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening, until

COLD = Options(max_tokens=200, temperature=0)
MESSAGES = [f"Tell me the story of the {'other ' * number}house" for number in range(4)]


async def undisturbed(engine: VllmEngine, message: str) -> str:
    """Return what the engine says to the first message of a conversation when nothing goes wrong."""
    prompt = Prompt(personalities().get("robbie"), (PromptMessage(Role.USER, message),))
    return text_of(await said_by(engine, prompt, COLD))


async def long_replies(engine: VllmEngine) -> dict[str, str]:
    """Return some messages with undisturbed replies that are long enough to be cut."""
    said = await asyncio.gather(*(undisturbed(engine, message) for message in MESSAGES))
    return {message: text for message, text in zip(MESSAGES, said, strict=True) if len(text) > 100}


def check(events: list[Event], whole: str) -> None:
    """Check that what a client saw and what is stored are `whole`, proven by the receipt."""
    end = events[-1]
    assert isinstance(end, Done), end
    assembled = Assembled.of(events)
    assert assembled.text == end.content == whole
    assert assembled.proven()


async def test_a_turn_is_answered_whole(byte_engine: VllmEngine, redis_server: RedisProcess) -> None:
    stack = Stack(redis_server.url, engine=byte_engine)
    async with stack, Listening(stack.service.ask(Ask("ann", MESSAGES[0], options=COLD))) as heard:
        events = await heard.end()
    check(events, await undisturbed(byte_engine, MESSAGES[0]))
    assert isinstance(events[-1], Done)
    assert events[-1].model == byte_engine.info.model
    assert events[-1].usage.completion_tokens > 0


async def test_after_the_death_of_a_run_the_stored_text_is_the_undisturbed_one_to_the_letter(
    byte_engine: VllmEngine, character_engine: VllmEngine, redis_server: RedisProcess
) -> None:
    for engine in (byte_engine, character_engine):
        replies = await long_replies(engine)
        assert replies
        taken_over = 0
        for number, (message, whole) in enumerate(replies.items()):
            stack = Stack(redis_server.url, engine=engine)
            async with stack, Listening(stack.service.ask(Ask(f"{engine.info.model}_{number}", message, options=COLD))) as heard:
                await heard.pieces(1 + number % 3, timeout=60)
                stack.pool.kill_run(heard.events[0].turn_id)
                events = await heard.end(60)
            check(events, whole)
            takeovers = [event for event in events if isinstance(event, Takeover)]
            taken_over += len(takeovers)
            assert all(event.after_seq > 0 for event in takeovers)
        assert taken_over == len(replies), "the fault did not hit"


async def test_dying_again_and_again_at_whatever_piece_it_stays_the_same_text(
    byte_engine: VllmEngine, redis_server: RedisProcess
) -> None:
    message, whole = next(iter((await long_replies(byte_engine)).items()))
    stack = Stack(redis_server.url, engine=byte_engine)
    async with stack, Listening(stack.service.ask(Ask("ann", message, options=COLD))) as heard:
        for deaths in range(1, 4):
            await heard.pieces(2 * deaths, timeout=60)
            await die(stack, heard.events[0].turn_id)
        events = await heard.end(60)
    check(events, whole)
    assert sum(isinstance(event, Takeover) for event in events) == 3


async def die(stack: Stack, turn_id: str) -> None:
    """Let the run of a turn die, and make the turn due where it would wait for a lease, as time would (law 7)."""
    run = stack.pool.runs[turn_id]
    stack.pool.kill_run(turn_id)

    async def another_runs() -> bool:
        if turn_id not in stack.pool.runs:
            await stack.redis.zadd("aurora:turns:open", {turn_id: 0}, xx=True)
        return stack.pool.runs.get(turn_id) not in (None, run)

    await until(another_runs, 30)
