"""What every engine promises (`serve_app.chat.engine`). An engine's own test module subclasses `EngineContract`.

The subclass gives the fixture `engine`, and whatever else its engine needs; it switches off only what its engine cannot promise.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from serve_app.chat.engine import Engine, EnginePiece, Prefix, Prompt, PromptMessage
from serve_app.chat.errors import ContinuationRefused, EngineError, ModelNotServed
from serve_app.chat.events import Usage
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personality, Script

DEADLINE = 20.0
"""Seconds that anything here may take before it counts as hanging."""

Request = tuple[Prompt, Options, Prefix]


async def said_by(
    engine: Engine, prompt: Prompt, options: Options, said: str | Prefix = "", run: str = "0123456789"
) -> list[EnginePiece]:
    """Return all the pieces of a reply, or of the rest of it after `said`."""
    prefix = Prefix(said) if isinstance(said, str) else said
    async with asyncio.timeout(DEADLINE):
        return [piece async for piece in engine.generate(prompt, options, prefix, run=run)]


def text_of(pieces: list[EnginePiece]) -> str:
    return "".join(piece.text for piece in pieces)


def prefix_of(pieces: list[EnginePiece]) -> Prefix:
    """Return what the log holds of these pieces: only what has text is written down."""
    return Prefix(text_of(pieces), tuple(token_id for piece in pieces if piece.text for token_id in piece.token_ids))


def cuts(engine: Engine, pieces: list[EnginePiece]) -> list[Prefix]:
    """Return what may be left of a reply when its replica dies, from nothing to all of it.

    An engine that continues by text goes on after any beginning of it. One that continues by token ids goes on to the letter
    between any two of its pieces, which is where a log of its own pieces can end.
    """
    if engine.info.continues_by == "token_ids":
        return [prefix_of(pieces[:cut]) for cut in range(len(pieces) + 1)]
    whole = text_of(pieces)
    return [Prefix(whole[:cut]) for cut in range(len(whole) + 1)]


class AnyEngineContract:
    """The promises of every engine, also of one whose reply to the same prompt may be another one each time.

    Fixture to give: `engine` (started). To adjust: `prompt`, `options`, `refused`, `idle`, `pace`, `silence`.
    """

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError("An engine's contract test gives the engine.")

    @pytest.fixture
    def personality(self) -> Personality:
        line = ("Grüße aus dem Leuchtturm, naïve 🌊 und 漢字 inbegriffen.",)
        script = Script(**{name: line * 4 for name in Script.model_fields})
        return Personality(name="test", display_name="Test", description="Test", system="Be short.", pools=("p",), script=script)

    @pytest.fixture
    def prompt(self, personality: Personality) -> Prompt:
        return Prompt(personality, (PromptMessage(Role.USER, "Say “Grüße, 漢字 and 🌊” to mÿ friend."),))

    @pytest.fixture
    def options(self) -> Options:
        return Options(max_tokens=64, temperature=0, seed=7)

    @pytest.fixture
    def refused(self) -> list[Request]:
        """Requests that the engine must refuse with an EngineError."""
        return []

    async def idle(self, engine: Engine) -> bool:
        """Say whether nothing goes on behind `engine`; a subclass asks its server."""
        return True

    async def pace(self, per_second: float | None) -> None:
        """Have what is behind the engine say so many words a second; None: at once. So that closing comes in the middle."""

    async def silence(self) -> bool:
        """Have what is behind the engine say no more after a few words; say whether that can be done."""
        return False

    async def reply(self, engine: Engine, prompt: Prompt, options: Options, said: str = "") -> str:
        """Return what the engine says after `said`."""
        return text_of(await said_by(engine, prompt, options, said))

    @pytest.fixture(autouse=True)
    async def nothing_left_behind(self, engine: Engine) -> AsyncIterator[None]:
        before = asyncio.all_tasks()
        yield
        await engine.close()
        assert asyncio.all_tasks() <= before | {asyncio.current_task()}

    async def test_it_says_what_it_is_before_it_is_started(self, engine: Engine) -> None:
        assert engine.info.kind
        assert engine.info.model

    async def test_the_pieces_in_their_order_are_a_reply_and_the_last_one_carries_the_usage(
        self, engine: Engine, prompt: Prompt, options: Options
    ) -> None:
        pieces = await said_by(engine, prompt, options)
        assert text_of(pieces).strip()
        assert all(piece.usage is None for piece in pieces[:-1])
        assert isinstance(pieces[-1].usage, Usage)
        assert pieces[-1].usage.completion_tokens > 0

    async def test_closing_early_stops_the_work_and_the_next_reply_is_whole(
        self, engine: Engine, prompt: Prompt, options: Options
    ) -> None:
        await self.pace(5)
        pieces = engine.generate(prompt, options, Prefix(), run="r1")
        async with asyncio.timeout(DEADLINE):
            await anext(pieces)
            await pieces.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
        assert await self.idle(engine)
        await self.pace(None)
        assert text_of(await said_by(engine, prompt, options)).strip()

    async def test_closing_before_the_first_piece_is_no_error(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        await engine.generate(prompt, options, Prefix(), run="r1").aclose()
        assert await self.idle(engine)

    async def test_cancelling_the_reader_stops_the_work(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        reader = asyncio.create_task(said_by(engine, prompt, options))
        await asyncio.sleep(0)
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        assert await self.idle(engine)

    async def test_a_piece_is_whole_characters(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        pieces = await said_by(engine, prompt, options)
        assert "".join(piece.text.encode().decode() for piece in pieces) == text_of(pieces)
        assert "\ufffd" not in text_of(pieces)

    async def test_silence_is_an_engine_error_in_time_and_stops_the_work(
        self, engine: Engine, prompt: Prompt, options: Options
    ) -> None:
        if not await self.silence():
            pytest.skip("nothing behind this engine can fall silent here")
        with pytest.raises(EngineError) as caught:
            await said_by(engine, prompt, options)
        assert not isinstance(caught.value, ContinuationRefused)
        assert caught.value.message
        assert await self.idle(engine)

    async def test_what_it_cannot_do_is_an_engine_error(self, engine: Engine, refused: list[Request]) -> None:
        for prompt, options, prefix in refused:
            with pytest.raises(EngineError) as caught:
                await said_by(engine, prompt, options, prefix)
            assert caught.value.message

    async def test_its_model_may_be_asked_for_by_name_and_any_other_is_refused_before_a_word(
        self, engine: Engine, prompt: Prompt, options: Options
    ) -> None:
        """Else a reply would be shown as that of a model that never spoke, and its token ids taken for that model's."""
        assert text_of(await said_by(engine, replace(prompt, model=engine.info.model), options)).strip()
        with pytest.raises(ModelNotServed, match="no-such-model"):
            await said_by(engine, replace(prompt, model="no-such-model"), options)

    async def test_check_start_and_close_may_come_twice(self, engine: Engine) -> None:
        await engine.start()
        await engine.check()
        await engine.check()
        await engine.close()
        await engine.close()


class EngineContract(AnyEngineContract):
    """All the promises: the same prompt has the same reply, so a continuation is compared with it to the letter."""

    async def test_a_reply_in_two_readings_is_the_same(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        assert text_of(await said_by(engine, prompt, options)) == text_of(await said_by(engine, prompt, options, run="another"))

    async def test_cut_anywhere_a_continuation_is_the_rest_to_the_letter(
        self, engine: Engine, prompt: Prompt, options: Options
    ) -> None:
        pieces = await said_by(engine, prompt, options)
        whole = text_of(pieces)
        assert not whole.isascii()
        for number, said in enumerate(cuts(engine, pieces)):
            assert said.text + text_of(await said_by(engine, prompt, options, said, run=f"run{number}")) == whole

    async def test_a_continuation_of_the_whole_reply_says_nothing(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        whole = cuts(engine, await said_by(engine, prompt, options))[-1]
        rest = await said_by(engine, prompt, options, whole)
        assert text_of(rest) == ""
        assert len(rest) <= 1

    async def test_replies_at_the_same_time_do_not_mix(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        replies = await asyncio.gather(*(said_by(engine, prompt, options, run=f"r{n}") for n in range(8)))
        assert len({text_of(reply) for reply in replies}) == 1
