"""What the engine vllm says: to the letter after a cut, up to a stop string, within its window, counted."""

import asyncio
import copy

import pytest

from serve_app.chat.engine import EnginePiece, Prefix, Prompt
from serve_app.chat.errors import EngineRejected
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.engines import VllmConfig, VllmEngine
from tests.contracts.engine_contract import cuts, prefix_of, said_by, text_of
from tests.vllm.engines import COLD, LONG, SLOTS, ask, others
from tests.vllm.tiny_model import WINDOW


def engine_like(engine: VllmEngine, **changed: object) -> VllmEngine:
    """Return an engine over the same loaded model that is configured otherwise."""
    other = VllmEngine(VllmConfig.model_validate(engine._config.model_dump() | changed))
    other._model = engine._model
    return other


def usage_of(pieces: list[EnginePiece]) -> tuple[int, int]:
    assert pieces[-1].usage is not None
    return pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens


def ids_of(pieces: list[EnginePiece]) -> list[int]:
    return [token_id for piece in pieces for token_id in piece.token_ids]


async def test_the_byte_level_model_says_characters_of_several_tokens_and_bytes_that_are_none(byte_engine: VllmEngine) -> None:
    """Otherwise the contract's cuts would prove less than they should."""
    pieces = await said_by(byte_engine, ask("Say “Grüße, 漢字 and 🌊” to mÿ friend."), COLD)
    assert any(ord(character) > 127 and character != "\ufffd" for piece in pieces for character in piece.text)
    assert "\ufffd" in text_of(pieces)
    assert any(len(piece.token_ids) > len(piece.text) for piece in pieces)


async def test_a_reply_begins_with_the_first_token_and_does_not_wait_for_the_last(byte_engine: VllmEngine) -> None:
    assert len(await said_by(byte_engine, ask("Hello"), COLD)) > 20


async def test_the_system_prompt_and_the_history_are_part_of_the_prompt(
    byte_engine: VllmEngine, character_engine: VllmEngine
) -> None:
    for engine in (byte_engine, character_engine):
        prompts = (ask("you"), ask("you", system="Be as short as that."), ask("us", "our", "you"))
        said = [await said_by(engine, prompt, COLD) for prompt in prompts]
        assert len({text_of(pieces) for pieces in said}) == 3


async def test_two_messages_of_the_user_in_a_row_are_one_because_templates_insist_on_turns(byte_engine: VllmEngine) -> None:
    prompt = ask("the", "story", "other")
    doubled = Prompt(prompt.personality, tuple(m for m in prompt.messages if m.role is Role.USER))
    said = [await said_by(byte_engine, prompt, COLD) for prompt in (doubled, ask("the\n\nother"))]
    assert text_of(said[0]) == text_of(said[1])
    assert usage_of(said[0]) == usage_of(said[1])


async def test_the_end_of_a_turn_is_no_part_of_the_text_and_going_on_after_it_says_nothing(byte_engine: VllmEngine) -> None:
    for number in range(40):
        pieces = await said_by(byte_engine, ask("the story " * number), LONG)
        if usage_of(pieces)[1] < 200:
            break
    else:
        pytest.fail("the model never ends its turn by itself")
    assert "</s>" not in text_of(pieces)
    again = await said_by(byte_engine, ask("the story " * number), LONG, prefix_of(pieces))
    assert text_of(again) == ""
    assert usage_of(again) == usage_of(pieces)


async def test_a_stop_string_ends_the_reply_and_every_cut_before_it_leads_there_too(character_engine: VllmEngine) -> None:
    whole = text_of(await said_by(character_engine, ask("Hello there"), COLD))
    for length in (1, 2, 4):
        stop = whole[30 : 30 + length]
        engine = engine_like(character_engine, stop=("never said", stop))
        pieces = await said_by(engine, ask("Hello there"), COLD)
        assert text_of(pieces) == whole[: whole.index(stop)]
        for said in cuts(engine, pieces):
            rest = await said_by(engine, ask("Hello there"), COLD, said)
            assert said.text + text_of(rest) == text_of(pieces)
        assert await others(engine) == 0


async def test_max_tokens_count_over_the_cut_and_so_does_the_usage(byte_engine: VllmEngine) -> None:
    pieces = await said_by(byte_engine, ask("Hello"), COLD)
    prompt_tokens, completion_tokens = usage_of(pieces)
    assert completion_tokens == COLD.max_tokens
    for said in cuts(byte_engine, pieces)[::7]:
        rest = await said_by(byte_engine, ask("Hello"), COLD, said)
        assert usage_of(rest) == (prompt_tokens, completion_tokens)
        assert len(said.token_ids) + len(ids_of(rest)) <= completion_tokens


async def test_without_a_word_about_it_the_configured_max_tokens_hold(byte_engine: VllmEngine) -> None:
    pieces = await said_by(engine_like(byte_engine, max_tokens=5), ask("Hello"), Options(temperature=0))
    assert usage_of(pieces)[1] == 5


async def test_ids_that_do_not_say_the_text_are_left_aside_and_it_goes_on_by_text(byte_engine: VllmEngine) -> None:
    for said in (
        Prefix("the other "),
        Prefix("the other ", (30, 31)),
        Prefix("the other ", (10**9,)),
        Prefix("the other ", (-1,)),
    ):
        rest = await said_by(byte_engine, ask("Hello"), COLD, said)
        assert text_of(rest)
        assert usage_of(rest)[1] == COLD.max_tokens
    assert text_of(rest) == text_of(await said_by(byte_engine, ask("Hello"), COLD, Prefix("the other ")))


async def test_with_a_temperature_the_rest_is_another_valid_one_and_what_was_said_stays(byte_engine: VllmEngine) -> None:
    warm = Options(max_tokens=64, temperature=1, seed=3)
    pieces = await said_by(byte_engine, ask("Hello"), warm)
    assert text_of(pieces) == text_of(await said_by(byte_engine, ask("Hello"), warm, run="another"))
    assert text_of(pieces) != text_of(await said_by(byte_engine, ask("Hello"), warm.model_copy(update={"seed": 4})))
    said = prefix_of(pieces[:10])
    assert usage_of(await said_by(byte_engine, ask("Hello"), warm, said))[1] <= 64


async def test_eight_different_replies_at_a_time_are_the_same_as_one_after_the_other(byte_engine: VllmEngine) -> None:
    prompts = [ask("the story " * number) for number in range(SLOTS)]
    alone = [text_of(await said_by(byte_engine, prompt, COLD)) for prompt in prompts]
    assert len(set(alone)) == SLOTS
    together = await asyncio.gather(*(said_by(byte_engine, prompt, COLD, run=f"r{at}") for at, prompt in enumerate(prompts)))
    assert [text_of(pieces) for pieces in together] == alone


async def test_more_replies_than_slots_wait_and_all_are_made(byte_engine: VllmEngine) -> None:
    asked = [asyncio.create_task(said_by(byte_engine, ask("Hello"), COLD, run=f"r{at}")) for at in range(2 * SLOTS)]
    await asyncio.sleep(0)
    assert byte_engine.status.slots == SLOTS
    replies = await asyncio.gather(*asked)
    assert len({text_of(pieces) for pieces in replies}) == 1
    assert byte_engine.status.busy == 0


async def test_replies_that_are_closed_make_room_for_others_at_once(byte_engine: VllmEngine) -> None:
    replies = [byte_engine.generate(ask("Hello"), LONG, Prefix(), run=f"r{at}") for at in range(SLOTS)]
    for pieces in replies:
        await anext(pieces)
    assert byte_engine.status.busy == SLOTS
    for pieces in replies:
        await pieces.aclose()
    assert byte_engine.status.busy == 0
    assert await others(byte_engine) == 0


async def test_history_that_does_not_fit_is_left_out_oldest_first_by_exact_counts(byte_engine: VllmEngine) -> None:
    turns = [text for number in range(24) for text in ("the other story " * 16 + "e" * number, "or " * 8)]
    pieces = await said_by(byte_engine, ask(*turns, "Hello"), COLD)
    room = WINDOW - (COLD.max_tokens or 0)
    prompt_tokens = usage_of(pieces)[0]
    fitting = [await prompt_tokens_of(byte_engine, ask(*turns[cut:], "Hello")) for cut in range(len(turns), -1, -2)]
    assert prompt_tokens == max(tokens for tokens in fitting if tokens <= room)
    assert fitting[-1] < prompt_tokens * 3


async def prompt_tokens_of(engine: VllmEngine, prompt: Prompt) -> int:
    assert engine._model is not None
    return len(engine._model.render(prompt))


async def test_a_message_longer_than_the_window_is_refused_with_advice(byte_engine: VllmEngine) -> None:
    with pytest.raises(EngineRejected, match="shorter message"):
        await said_by(byte_engine, ask("the other story " * 800), COLD)
    assert byte_engine.status.busy == 0


async def test_who_asks_for_more_than_the_window_gets_what_is_left_of_it(byte_engine: VllmEngine) -> None:
    engine = engine_like(byte_engine)
    engine._model = copy.copy(byte_engine._model)
    assert engine._model is not None
    engine._model.window = 128
    for number in range(40):
        prompt_tokens, completion_tokens = usage_of(
            await said_by(engine, ask("e" * number), Options(max_tokens=8_000, temperature=0))
        )
        assert prompt_tokens + completion_tokens <= 128
        if prompt_tokens + completion_tokens == 128:
            return
    pytest.fail("no reply was as long as that")
