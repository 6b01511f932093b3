"""A later attempt goes on from the text in the log, as what the first claim pinned (law 5)."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, Prefix, Prompt
from serve_app.chat.errors import EngineUnavailable, Overloaded
from serve_app.chat.events import Piece, Takeover
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personalities, PoolChoice
from serve_app.chat.service import Ask
from serve_app.chat.supervise import Ran, Supervisor, SupervisorConfig
from serve_app.chat.turns import Plan, Verdict
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities
from tests.support.turn_tools import Assembled, Published, Store, ends_in, new_turn, store, undisturbed
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration
SLOW = Options(words=200, words_per_second=100, temperature=0.3)


@dataclass(frozen=True)
class Asked:
    """What an engine was asked."""

    prompt: Prompt
    options: Options
    prefix: Prefix
    run: str


class RecordingEngine(Engine):
    """The scripted engine, which remembers what it was asked."""

    def __init__(self) -> None:
        self._engine = ScriptedEngine(ScriptedConfig(drills=True))
        self.asked: list[Asked] = []

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> None: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        self.asked.append(Asked(prompt, options, continue_from, run))
        async for piece in self._engine.generate(prompt, options, continue_from, run=run):
            yield piece


def rolled_out() -> Personalities:
    """The personalities after a roll-out: Robbie is another, with other defaults, in another pool."""
    changed = [
        member.model_copy(
            update={
                "system": "You are somebody else.",
                "options": Options(max_tokens=3),
                "pools": (PoolChoice(pool="elsewhere"),),
            }
        )
        for member in personalities()
    ]
    return Personalities(changed, default="robbie")


async def die(stack: Stack, turn_id: str) -> None:
    """Let the run of a turn die, as with its replica, and make the turn due where it would wait for a lease."""
    await until(lambda: turn_id in stack.pool.runs)
    run = stack.pool.runs[turn_id]
    stack.pool.kill_run(turn_id)

    async def running_again() -> bool:
        now = stack.pool.runs.get(turn_id)
        if now is None:
            await stack.redis.zadd("aurora:turns:open", {turn_id: 0}, xx=True)
        return now not in (None, run)

    await until(running_again)


async def test_a_takeover_goes_on_as_pinned_whatever_was_rolled_out_meanwhile(redis_server: RedisProcess) -> None:
    engine = RecordingEngine()
    async with Stack(redis_server.url, engine=engine) as stack:
        ask = Ask(client_id="ann", message="Tell me a story", options=SLOW)
        async with Listening(stack.service.ask(ask)) as heard:
            await heard.pieces(3)
            stack.supervisor.personalities = stack.service.personalities = rolled_out()
            await die(stack, heard.events[0].turn_id)
            events = await heard.end()
        first, second = engine.asked
        assert second.prompt == first.prompt, "the same personality, the same history"
        assert second.options == first.options
        assert first.prefix == Prefix()
        takeover = next(event for event in events if isinstance(event, Takeover))
        log = [event.text for event in events if isinstance(event, Piece)][: takeover.after_seq]
        assert second.prefix.text == "".join(log), "exactly what the log holds"
        assert Assembled.of(events).text == await undisturbed(ask.message, ask.options)
        # The next turn is answered by who Robbie is now.
        async with Listening(stack.service.ask(Ask(client_id="bob", message="Tell me a story"))) as later:
            await later.end()
    assert engine.asked[2].prompt.personality.system == "You are somebody else."


async def test_a_personality_that_was_removed_meanwhile_still_finishes_what_it_began(
    redis_server: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with Stack(redis_server.url) as stack:
        ask = Ask(client_id="ann", message="Tell me a story", personality="kristina", options=SLOW)
        async with Listening(stack.service.ask(ask)) as heard:
            await heard.pieces(3)
            stack.supervisor.personalities = Personalities([personalities().get("robbie")])
            await die(stack, heard.events[0].turn_id)
            events = await heard.end()
    assert events[-1].type == "done"
    assert Assembled.of(events).text == await undisturbed(ask.message, ask.options, "kristina")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


class Chain:
    """Pools whose first is full at first; the second dies with the turn, is full after that, and takes it in the end."""

    def __init__(self, at: Store) -> None:
        self._at = at
        self.asked: list[str] = []

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        self.asked.append(plan.pool)
        match len(self.asked):
            case 2:
                await self._at.turns.claim(turn_id, dispatch=dispatch, run=run, node="star", plan=plan, window=9)
                raise EngineUnavailable()
            case 5:
                return Ran(Verdict.OK)
            case _:
                raise Overloaded()


async def test_a_turn_that_has_begun_stays_with_its_pool_however_full_that_is(redis_server: RedisProcess) -> None:
    who = personalities().get("robbie").model_copy(update={"pools": (PoolChoice(pool="large"), PoolChoice(pool="small"))})
    async with store(redis_server.url) as at:
        new, pools = new_turn(), Chain(at)
        await at.turns.begin(new)
        config = SupervisorConfig(retry_s=0.01)
        async with Supervisor(at.turns, pools, Personalities([who]), config) as router:
            router.take(new.turn_id, token=new.token, personality="robbie")
            await until(lambda: len(pools.asked) == 5)
    assert pools.asked == ["large", "small", "small", "small", "small"]


@pytest.mark.parametrize("divergent", [False, True], ids=["repeatable", "divergent"])
async def test_a_reply_that_three_runs_wrote_is_contiguous_stretches_cut_where_the_takeovers_say(
    redis_server: RedisProcess, divergent: bool
) -> None:
    engine = RecordingEngine()
    options = SLOW.model_copy(update={"divergent": divergent})
    with Published(redis_server) as published:
        async with Stack(redis_server.url, engine=engine) as stack:
            async with Listening(stack.service.ask(Ask(client_id="ann", message="Tell me a story", options=options))) as heard:
                turn_id = heard.events[0].turn_id if heard.events else (await heard.first("accepted")).turn_id
                for deaths in (1, 2):
                    await heard.pieces(8 * deaths)
                    await die(stack, turn_id)
                events = await heard.end()
            stored = (await stack.service.turn(turn_id)).reply
        assert len(ends_in(published.drain(), turn_id)) == 1
    said = Assembled.of(events)
    assert said.proven()
    assert stored is not None
    assert said.text == stored.content

    pieces = [event for event in events if isinstance(event, Piece)]
    cuts = [event.after_seq for event in events if isinstance(event, Takeover)]
    assert [asked.prefix.text for asked in engine.asked] == ["".join(p.text for p in pieces[:cut]) for cut in (0, *cuts)]
    assert [p.attempt for p in pieces] == sorted(p.attempt for p in pieces)
    for number, asked in enumerate(engine.asked, start=1):
        stretch = "".join(p.text for p in pieces if p.attempt == number)
        assert stretch, f"attempt {number} said nothing"
        if divergent:  # every word that a run began carries its mark; a word that was left unfinished stays as it is
            marks = [word.rpartition("~")[2] for word in stretch.split()[:-1]]
            assert set(marks) == {asked.run[:6]}
    if not divergent:
        assert said.text == await undisturbed("Tell me a story", options)
