"""What the engine `vllm` says of itself: that it hangs, so that another replica goes on by token ids, and which model it has.

vLLM itself is not at hand here (`tests/vllm` has it): a model that spells stands in for the loaded one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from serve_app.chat.engine import Prefix, Prompt, PromptMessage
from serve_app.chat.errors import EngineUnavailable, ModelNotServed
from serve_app.chat.events import Done, Event, Takeover
from serve_app.chat.generate import GeneratorConfig
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personalities, PoolChoice
from serve_app.chat.service import Ask
from serve_app.engines import VllmConfig, VllmEngine, vllm
from serve_app.engines.vllm_model import Tokens
from tests.support.mesh import Mesh, Replica
from tests.support.ollama_engines import prompt_of, reply_of
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities
from tests.support.turn_tools import Assembled
from tests.support.waiting import whole

pytestmark = pytest.mark.integration
TEXT = "The lamp is lit."


class Spelling:
    """A loaded model that says `TEXT`, a token for each letter; after `silent_after` of them no more, to `whom` (or all)."""

    window = 4_096

    def __init__(self, silent_after: int | None = None, whom: str = "") -> None:
        self.silent_after, self._whom = silent_after, whom
        self.went_on_from: list[tuple[int, ...]] = []

    def render(self, prompt: Prompt) -> list[int]:
        return [0]

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def knows(self, ids: Sequence[int]) -> bool:
        return True

    async def generate(self, ids: Sequence[int], options: Options, most: int, run: str) -> AsyncGenerator[Tokens, None]:
        self.went_on_from.append(tuple(ids[1:]))
        for number, letter in enumerate(TEXT[len(ids) - 1 :]):
            if number == self.silent_after and self._whom in ("", run):
                await asyncio.Event().wait()
            yield Tokens((ord(letter),), 1)

    async def check(self) -> None: ...

    async def try_out(self) -> None:
        async for _ in self.generate([0], Options.model_construct(), 1, "try-out"):
            return

    def shutdown(self) -> None: ...


def engine_of(model: Spelling, silence_s: float = 0.3) -> VllmEngine:
    engine = VllmEngine(VllmConfig(model="/models/spelling", served_model_name="spelling", silence_timeout_s=silence_s))
    engine._model = model  # type: ignore[assignment]
    return engine


@asynccontextmanager
async def two_replicas(redis: RedisProcess, first: Spelling, second: Spelling) -> AsyncIterator[tuple[Stack, Mesh]]:
    """Give Aurora with one pool of two replicas, the first preferred, as it is on this node."""
    robbie = personalities().get("robbie").model_copy(update={"pools": (PoolChoice(pool="gpu"),)})
    replicas = Replica("g1", "gpu", engine_of(first), node="aurora"), Replica("g2", "gpu", engine_of(second))
    run = GeneratorConfig(first_piece_timeout_s=0.4, beat_s=0.1)
    async with (
        Mesh(redis.url, *replicas, config=run) as mesh,
        Stack(redis.url, pools=mesh, people=Personalities([robbie])) as stack,
    ):
        yield stack, mesh


async def answer(stack: Stack, client_id: str = "ann") -> list[Event]:
    events = await whole(stack.service.ask(Ask(client_id=client_id, message="Hello")))
    end = events[-1]
    assert isinstance(end, Done), end
    assert Assembled.of(events).text == end.content == TEXT
    return events


async def said_to(run: str, engine: VllmEngine, model: str = "") -> str:
    prompt = Prompt(personalities().get("robbie"), (PromptMessage(Role.USER, "Hello"),), model)
    return "".join([piece.text async for piece in engine.generate(prompt, Options(), Prefix(), run=run)])


@pytest.mark.parametrize("letters", [pytest.param(4, id="in-the-middle"), pytest.param(0, id="before-the-first-token")])
async def test_another_replica_of_the_only_pool_goes_on_by_token_ids_and_the_next_turn_goes_to_it_at_once(
    redis_server: RedisProcess, letters: int
) -> None:
    well = Spelling()
    async with two_replicas(redis_server, Spelling(silent_after=letters), well) as (stack, mesh):
        takeover = next(event for event in await answer(stack) if isinstance(event, Takeover))
        assert (takeover.reason, takeover.pool, takeover.replica) == ("gave_up", "gpu", "g2")
        await answer(stack, "bob")
    assert well.went_on_from == [tuple(map(ord, TEXT[:letters])), ()]
    assert mesh.calls == ["g1", "g2", "g2"]


@pytest.mark.parametrize("letters", [pytest.param(4, id="in-the-middle"), pytest.param(0, id="before-the-first-token")])
async def test_an_engine_that_fell_silent_says_so_when_it_is_checked_until_it_makes_a_token_again(
    letters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "_CHECK_S", 0.1)
    model = Spelling(silent_after=letters)
    engine = engine_of(model, silence_s=0.1)
    await engine.check()
    with pytest.raises((EngineUnavailable, TimeoutError)):
        async with asyncio.timeout(0.2):  # the pool's limit, for the first token
            await said_to("ann", engine)
    model.silent_after = 0
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=r"no token for 0\.1 s"):
            await engine.check()
    model.silent_after = None
    await engine.check()
    model.silent_after = 0
    await engine.check()  # it is not tried out for nothing
    assert len(model.went_on_from) == 4


@pytest.mark.parametrize(("patience_s", "others"), [(0.05, False), (0.5, True)], ids=["soon", "while-others-go-on"])
async def test_who_gives_up_then_says_nothing_about_the_engine(patience_s: float, others: bool) -> None:
    engine = engine_of(model := Spelling(silent_after=0, whom="ann"), silence_s=0.3)
    waiting, begun = asyncio.create_task(said_to("ann", engine)), time.monotonic()
    while time.monotonic() < begun + patience_s:
        assert not others or await said_to("bob", engine) == TEXT
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    asked = len(model.went_on_from)
    await engine.check()
    assert len(model.went_on_from) == asked, "it was tried out"


async def test_several_that_gave_up_soon_one_after_the_other_are_as_good_as_one_that_waited() -> None:
    engine = engine_of(model := Spelling(silent_after=0), silence_s=0.3)
    for _ in range(4):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await said_to("ann", engine)
    asked, model.silent_after = len(model.went_on_from), None
    await engine.check()
    assert len(model.went_on_from) == asked + 1, "it was not tried out"


async def test_an_engine_that_speaks_again_while_it_is_tried_out_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_CHECK_S", 0.2)
    engine = engine_of(Spelling(silent_after=0, whom="try-out"))
    engine._hangs = True
    checking = asyncio.create_task(engine.check())
    await asyncio.sleep(0)
    assert await said_to("bob", engine) == TEXT
    await checking


async def test_a_reply_that_waits_while_others_go_on_says_nothing_about_the_engine() -> None:
    """vLLM lets a reply wait for the others when its memory is full."""
    engine = engine_of(Spelling(silent_after=4, whom="ann"), silence_s=0.1)
    waiting = asyncio.create_task(said_to("ann", engine))
    while not waiting.done():
        assert await said_to("bob", engine) == TEXT
        await asyncio.sleep(0)
    with pytest.raises(EngineUnavailable):
        await waiting
    await engine.check()


async def test_it_is_asked_by_the_name_that_is_shown_or_by_none_and_refuses_another_models_turns() -> None:
    engine = engine_of(Spelling())
    assert await said_to("ann", engine) == await said_to("ann", engine, "spelling") == TEXT
    for foreign in ("llama3.2", "/models/spelling"):
        with pytest.raises(ModelNotServed, match=foreign):
            await said_to("ann", engine, foreign)


class Counting(Spelling):
    """Counts a letter of the prompt as a token."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        """Tokens of the prompt, and those that may be said."""

    def render(self, prompt: Prompt) -> list[int]:
        return [0] * sum(len(message.content) for message in prompt.messages)

    async def generate(self, ids: Sequence[int], options: Options, most: int, run: str) -> AsyncGenerator[Tokens, None]:
        self.asked.append((len(ids), most))
        yield Tokens((ord("x"),), 1)


async def test_a_personality_that_wants_a_smaller_window_gets_it() -> None:
    model, turns = Counting(), ["a" * 100] * 61
    for wanted in (None, 1_024, 100_000):
        await reply_of(engine_of(model), prompt_of(*turns, context_window=wanted), Options(max_tokens=20_000))
    usual, narrow, wide = model.asked
    assert usual == wide
    assert sum(usual) == model.window
    assert sum(narrow) == 1_024
    assert 400 <= narrow[0] <= 512
