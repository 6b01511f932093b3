"""A personality's chain of pools: what is away, full, slow or broken is passed over, and the answer is one answer still."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from serve_app.chat.errors import (
    ContinuationRefused,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    ModelNotServed,
)
from serve_app.chat.events import Done, Event, Failed, Started, Stopped, Takeover
from serve_app.chat.options import PersonalityOptions
from serve_app.chat.personalities import Personalities, PoolChoice
from serve_app.chat.replicas import ReplicaStatus
from serve_app.chat.service import Ask
from serve_app.chat.supervise import SupervisorConfig
from serve_app.engines import ScriptedConfig, ScriptedEngine
from tests.support.mesh import TEXT, WORDS, Mesh, Replica, Wordy
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities
from tests.support.turn_tools import Assembled
from tests.support.waiting import Listening, until, whole

pytestmark = pytest.mark.integration
CHAIN = (PoolChoice(pool="gpu"), PoolChoice(pool="ollama", model="small"))


def people(chain: tuple[PoolChoice, ...] = CHAIN) -> Personalities:
    robbie = personalities().get("robbie").model_copy(update={"pools": chain, "options": PersonalityOptions(temperature=0.3)})
    return Personalities([robbie])


@asynccontextmanager
async def aurora(redis: RedisProcess, *replicas: Replica, people: Personalities = people()) -> AsyncIterator[tuple[Stack, Mesh]]:  # noqa: B008 - a value
    async with Mesh(redis.url, *replicas) as mesh, Stack(redis.url, pools=mesh, people=people) as stack:
        yield stack, mesh


async def answer(stack: Stack, message: str = "Hello", **asked: str) -> list[Event]:
    return await whole(stack.service.ask(Ask(client_id="ann", message=message, **asked)))


def ends(events: list[Event]) -> Done:
    end = events[-1]
    assert isinstance(end, Done), end
    assert Assembled.of(events).text == end.content == TEXT
    return end


async def test_the_first_pool_answers_and_everybody_is_told_which_pool_model_and_node_it_was(redis_server: RedisProcess) -> None:
    gpu, ollama = Replica("g1", "gpu", Wordy("large")), Replica("o1", "ollama", Wordy(), node="iceland")
    async with aurora(redis_server, gpu, ollama) as (stack, mesh):
        events = await answer(stack)
        end = ends(events)
        assert (end.pool, end.model, end.generated_on) == ("gpu", "large", "star")
        started = next(event for event in events if isinstance(event, Started))
        assert (started.pool, started.model, started.replica, started.node) == ("gpu", "large", "g1", "star")
        page = await stack.service.history(end.conversation_id, limit=10)
        assert (page.messages[-1].pool, page.messages[-1].model, page.messages[-1].generated_on) == ("gpu", "large", "star")
        async with stack.serving() as base, httpx.AsyncClient(base_url=base) as http:
            said = (await http.post("/api/chat", json={"client_id": "bob", "message": "Hello"})).json()
        assert (said["pool"], said["model"], said["generated_on"]) == ("gpu", "large", "star")
    assert mesh.calls == ["g1", "g1"]


async def test_what_is_stopped_says_which_pool_model_and_node_made_it(redis_server: RedisProcess) -> None:
    engine, made_by = Wordy("large", pause_s=0.2), ("gpu", "large", "star")
    async with aurora(redis_server, Replica("g1", "gpu", engine)) as (stack, _):
        async with Listening(stack.service.ask(Ask(client_id="ann", message="Hello"))) as heard:
            await stack.service.stop((await heard.first("piece")).turn_id)
            stopped = (await heard.end())[-1]
        assert isinstance(stopped, Stopped)
        assert (stopped.pool, stopped.model, stopped.generated_on) == made_by
        stored = (await stack.service.history(stopped.conversation_id, limit=10)).messages[-1]
        assert (stored.status, stored.pool, stored.model, stored.generated_on) == ("stopped", *made_by)
        async with stack.serving() as base, httpx.AsyncClient(base_url=base) as http:
            asked = asyncio.create_task(http.post("/api/chat", json={"client_id": "bob", "message": "Hello"}))
            await until(lambda: len(engine.prompts) == 2)
            (turn,) = await stack.turns.recent_turns("bob")
            await stack.service.stop(turn.turn_id)
            said = (await asked).json()
    assert (said["status"], said["pool"], said["model"], said["generated_on"]) == ("stopped", *made_by)


async def test_a_pool_whose_machine_sleeps_costs_nothing_and_is_used_again_once_it_is_awake(redis_server: RedisProcess) -> None:
    gpu, ollama = Replica("g1", "gpu", Wordy("large")), Replica("o1", "ollama", Wordy())
    async with aurora(redis_server, gpu, ollama) as (stack, mesh):
        await mesh.sleep("g1")
        await until(lambda: stack.roster.place(CHAIN).choice.pool == "ollama")
        for _ in range(3):
            begun = time.monotonic()
            end = ends(await answer(stack))
            assert time.monotonic() - begun < 1.0, "no timeout is paid"
            assert (end.pool, end.model, end.attempt) == ("ollama", "small", 1)
        await mesh.wake("g1")
        await until(lambda: stack.roster.place(CHAIN).choice.pool == "gpu")
        assert ends(await answer(stack)).pool == "gpu"
    assert mesh.calls == ["o1", "o1", "o1", "g1"], "nobody called the one that slept"


async def test_a_machine_that_dies_before_its_record_ends_costs_one_call_and_the_rest_go_elsewhere_at_once(
    redis_server: RedisProcess,
) -> None:
    gpu, ollama = Replica("g1", "gpu", Wordy("large")), Replica("o1", "ollama", Wordy())
    async with aurora(redis_server, gpu, ollama) as (stack, mesh):
        mesh["g1"].dead = True
        assert [ends(await answer(stack)).pool for _ in range(3)] == ["ollama"] * 3
    assert mesh.calls == ["g1", "o1", "o1", "o1"]


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        pytest.param(Wordy("large", fails=EngineUnavailable("The server is gone.")), "gave_up", id="unavailable"),
        pytest.param(Wordy("large", hangs=True), "silent", id="first-piece-timeout"),
        pytest.param(Wordy("large", fails=EngineError("500")), "unfit", id="broken"),
    ],
)
async def test_before_the_first_piece_the_next_pool_answers_as_the_same_personality(
    redis_server: RedisProcess, engine: Wordy, reason: str
) -> None:
    small = Wordy()
    async with aurora(redis_server, Replica("g1", "gpu", engine), Replica("o1", "ollama", small)) as (stack, _):
        events = await answer(stack)
    end = ends(events)
    assert (end.pool, end.model, end.attempt) == ("ollama", "small", 2)
    takeover = next(event for event in events if isinstance(event, Takeover))
    assert (takeover.reason, takeover.after_seq, takeover.pool, takeover.model) == (reason, 0, "ollama", "small")
    (first, options, _), (second, same_options, prefix) = engine.prompts[0], small.prompts[0]
    assert (second.personality.system, second.messages) == (first.personality.system, first.messages)
    assert (options, options.temperature, second.model) == (same_options, 0.3, "small")
    assert prefix.text == ""


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Wordy("large", fails=EngineUnavailable("The server is gone."), after=5, ids=True), id="unavailable"),
        pytest.param(Wordy("large", hangs=True, after=5, ids=True), id="silent"),
    ],
)
async def test_after_the_first_piece_the_next_pool_continues_by_the_text_and_nothing_is_said_twice(
    redis_server: RedisProcess, engine: Wordy
) -> None:
    small = Wordy(ids=True)
    async with aurora(redis_server, Replica("g1", "gpu", engine), Replica("o1", "ollama", small)) as (stack, _):
        end = ends(await answer(stack))
    assert (end.pool, end.model, end.attempt) == ("ollama", "small", 2)
    (_, _, prefix) = small.prompts[0]
    assert (prefix.text, prefix.token_ids) == ("".join(WORDS[:5]), ()), "another model's token ids mean nothing"


@pytest.mark.parametrize(
    ("engine", "next_one"),
    [
        pytest.param(Wordy("large", hangs=True, after=3), "g2", id="silent"),
        pytest.param(Wordy("large", fails=EngineTimeout("The server hangs."), after=3), "g2", id="the engine says so"),
        pytest.param(Wordy("large", fails=EngineError("500"), after=3), "g1", id="broken"),
    ],
)
async def test_a_server_that_is_silent_hands_the_turn_to_the_next_pool_and_its_replica_gets_none_for_a_while(
    redis_server: RedisProcess, engine: Wordy, next_one: str
) -> None:
    replicas = Replica("g1", "gpu", engine, node="aurora"), Replica("g2", "gpu", Wordy("large")), Replica("o1", "ollama", Wordy())
    async with aurora(redis_server, *replicas) as (stack, mesh):
        assert ends(await answer(stack)).pool == "ollama"
        engine.hangs, engine.fails = False, None
        assert ends(await answer(stack, "Again")).pool == "gpu"
    assert mesh.calls == ["g1", "o1", next_one]


async def test_another_replica_of_the_same_pool_goes_on_by_token_ids(redis_server: RedisProcess) -> None:
    broken, well = Wordy("large", fails=EngineUnavailable("Gone."), after=5, ids=True), Wordy("large", ids=True)
    replicas = Replica("g1", "gpu", broken, node="aurora"), Replica("g2", "gpu", well), Replica("o1", "ollama", Wordy())
    async with aurora(redis_server, *replicas) as (stack, mesh):
        events = await answer(stack)
    end = ends(events)
    assert (end.pool, end.model, end.attempt, end.generated_on) == ("gpu", "large", 2, "star")
    takeover = next(event for event in events if isinstance(event, Takeover))
    assert (takeover.pool, takeover.model, takeover.replica) == ("gpu", "large", "g2")
    assert well.prompts[0][2].token_ids == tuple(range(5))
    assert mesh.calls == ["g1", "g2"]


async def test_once_two_models_have_spoken_token_ids_are_of_no_use_to_either(redis_server: RedisProcess) -> None:
    gone = EngineUnavailable("Gone.")
    large = Wordy("large", fails=gone, after=3, ids=True)
    small, other = Wordy("small", fails=gone, after=3, ids=True), Wordy("small", ids=True)
    replicas = Replica("g1", "gpu", large), Replica("o1", "ollama", small, "aurora"), Replica("o2", "ollama", other)
    async with aurora(redis_server, *replicas) as (stack, _):
        assert ends(await answer(stack)).attempt == 3
    assert other.prompts[0][2].text == "".join(WORDS[:6])
    assert other.prompts[0][2].token_ids == ()


async def test_a_pool_that_cannot_continue_hands_on_to_one_that_can(redis_server: RedisProcess) -> None:
    stops = Replica("g1", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=4), node="aurora")
    refuses = Replica("g2", "gpu", Wordy("large", fails=ContinuationRefused()), node="iceland")
    async with aurora(redis_server, stops, refuses, Replica("o1", "ollama", Wordy())) as (stack, mesh):
        end = ends(await answer(stack))
    assert (end.pool, end.attempt) == ("ollama", 3)
    assert mesh.calls == ["g1", "g2", "o1"]


async def test_scripted_does_not_go_on_with_what_a_model_said_and_hands_on_to_a_pool_that_can(redis_server: RedisProcess) -> None:
    stops = Replica("g1", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=4))
    script = Replica("s1", "scripted", ScriptedEngine(ScriptedConfig()))
    chain = PoolChoice(pool="gpu"), PoolChoice(pool="scripted"), PoolChoice(pool="ollama")
    async with aurora(redis_server, stops, script, Replica("o1", "ollama", Wordy()), people=people(chain)) as (stack, mesh):
        end = ends(await answer(stack))
    assert (end.pool, end.attempt) == ("ollama", 3)
    assert mesh.calls == ["g1", "s1", "o1"]


async def test_where_scripted_is_the_last_resort_a_broken_answer_fails_as_one_that_may_be_asked_for_again(
    redis_server: RedisProcess,
) -> None:
    stops = Replica("g1", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=4))
    script = Replica("s1", "scripted", ScriptedEngine(ScriptedConfig()))
    chain = PoolChoice(pool="gpu"), PoolChoice(pool="scripted")
    async with aurora(redis_server, stops, script, people=people(chain)) as (stack, _):
        end = (await answer(stack))[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.retryable, end.content) == ("continuation_refused", True, "".join(WORDS[:4]))


async def test_where_nobody_can_continue_the_turn_fails_once_and_what_was_said_stays_as_it_was(
    redis_server: RedisProcess,
) -> None:
    stops = Replica("g1", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=4, once=True), node="aurora")
    refuses = Replica("g2", "gpu", Wordy("large", fails=ContinuationRefused()))
    async with aurora(redis_server, stops, refuses) as (stack, mesh):
        events = await answer(stack)
        end = events[-1]
        assert isinstance(end, Failed)
        assert (end.code, end.retryable) == ("continuation_refused", True)
        assert Assembled.of(events).text == end.content == "".join(WORDS[:4])
        page = await stack.service.history(end.conversation_id, limit=10)
        assert [(m.content, m.status) for m in page.messages[1:]] == [("".join(WORDS[:4]), "failed")]
    assert mesh.calls == ["g1", "g2"]


@pytest.mark.parametrize(
    ("late", "error"),
    [
        pytest.param(Replica("o1", "ollama", Wordy()), EngineUnavailable("Gone."), id="a-pool"),
        pytest.param(Replica("o1", "ollama", Wordy()), EngineError("500"), id="a-pool-for-a-broken-one"),
        pytest.param(Replica("g2", "gpu", Wordy("large")), EngineUnavailable("Gone."), id="a-replica"),
    ],
)
async def test_who_came_up_since_the_turn_was_sent_goes_on_where_its_engine_fails(
    redis_server: RedisProcess, late: Replica, error: EngineError
) -> None:
    stops = Wordy("large", fails=error, after=6, pause_s=0.2)
    async with aurora(redis_server, Replica("g1", "gpu", stops, node="aurora"), late) as (stack, mesh):
        await mesh.sleep(late.name)
        await until(lambda: not stack.roster.place([PoolChoice(pool=late.pool)], failed={"g1"}).replica)
        async with Listening(stack.service.ask(Ask(client_id="ann", message="Hello"))) as heard:
            await heard.first("piece")
            await mesh.wake(late.name)
            end = ends(await heard.end())
    assert (end.pool, end.attempt) == (late.pool, 2)
    assert mesh.calls == ["g1", late.name]


@pytest.mark.parametrize("pool", ["gpu", "ollama"])
async def test_an_engine_that_fails_waits_for_the_only_other_one_where_that_has_no_room(
    redis_server: RedisProcess, pool: str
) -> None:
    fails = Replica("g1", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=6), node="aurora")
    full = Replica("other", pool, Wordy("large"), refuses=3)
    async with aurora(redis_server, fails, full) as (stack, mesh):
        end = ends(await answer(stack))
    assert (end.pool, end.attempt) == (pool, 2)
    assert mesh.calls == ["g1", *["other"] * 4]


async def test_a_replica_that_had_no_room_is_asked_for_again_once_all_have_been_asked(redis_server: RedisProcess) -> None:
    only = people((PoolChoice(pool="gpu"),))
    async with aurora(redis_server, Replica("g1", "gpu", Wordy("large"), refuses=2), people=only) as (stack, mesh):
        ends(await answer(stack))
    assert mesh.calls == ["g1", "?", "g1"], "and not left to Serve for ever, which may choose one that has no engine yet"


async def test_an_engine_that_fails_waits_in_the_queue_of_the_only_other_one_however_long_that_is(
    redis_server: RedisProcess,
) -> None:
    fails = Replica("g1", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=6), node="aurora")
    full = Replica("g2", "gpu", Wordy("large", slots=1, busy=1), queues=2)
    soon = SupervisorConfig(beat_s=0.05, retry_s=0.02, unclaimed_beats=2, queued_beats=2)
    async with (
        Mesh(redis_server.url, fails, full) as mesh,
        Stack(redis_server.url, pools=mesh, people=people(), supervising=soon) as stack,
    ):
        end = ends(await answer(stack))
    assert (end.pool, end.attempt) == ("gpu", 2)
    assert mesh.calls == ["g1", "g2", "g2", "g2"]


async def test_a_silent_server_of_the_only_pool_fails_its_turn_and_the_next_one_goes_to_another_replica(
    redis_server: RedisProcess,
) -> None:
    hangs = Replica("g1", "gpu", Wordy("large", hangs=True, after=3), node="aurora")
    async with aurora(redis_server, hangs, Replica("g2", "gpu", Wordy("large"))) as (stack, mesh):
        end = (await answer(stack))[-1]
        assert isinstance(end, Failed)
        assert (end.code, end.content, end.attempt) == ("engine_timeout", "".join(WORDS[:3]), 1)
        ends(await answer(stack, "Again"))
    assert mesh.calls == ["g1", "g2"]


async def test_a_turn_whose_engine_fails_while_nobody_supervises_it_has_its_end_once_all_the_same(
    redis_server: RedisProcess,
) -> None:
    fails = Wordy("large", fails=EngineUnavailable("Gone."), after=3, pause_s=0.2)
    async with aurora(redis_server, Replica("g1", "gpu", fails)) as (other, mesh):
        async with Stack(redis_server.url, pools=mesh, people=people()) as stack:
            begun = await stack.service.begin(Ask(client_id="ann", message="Hello"))
            await until(lambda: fails.prompts)
        async with Listening(other.service.follow(begun.turn_id)) as heard:  # its router is gone
            events = await heard.end()
    end = events[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.message, end.attempt, end.content) == ("engine_unavailable", "Gone.", 2, "".join(WORDS[:6]))
    assert Assembled.of(events).text == end.content


@pytest.mark.parametrize(
    "error", [EngineUnavailable("Gone."), EngineError("500"), EngineRejected("Too long.")], ids=lambda error: error.code
)
async def test_with_nowhere_to_go_the_failure_is_told_at_once_and_as_it_is(
    redis_server: RedisProcess, error: EngineError
) -> None:
    async with aurora(redis_server, Replica("g1", "gpu", Wordy("large", fails=error))) as (stack, mesh):
        end = (await answer(stack))[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.message, end.attempt) == (error.code, error.message, 1)
    assert mesh.calls == ["g1"]


async def test_what_one_engine_refuses_is_not_carried_through_all_pools(redis_server: RedisProcess) -> None:
    large = Wordy("large", fails=EngineRejected("Too long."))
    async with aurora(redis_server, Replica("g1", "gpu", large), Replica("o1", "ollama", Wordy())) as (stack, mesh):
        end = (await answer(stack))[-1]
    assert isinstance(end, Failed)
    assert end.code == "engine_rejected"
    assert mesh.calls == ["g1"]


async def test_a_model_that_a_pool_does_not_have_is_asked_of_the_next_one(redis_server: RedisProcess) -> None:
    chain = (PoolChoice(pool="gpu", model="mistyped"), PoolChoice(pool="ollama", model="small"))
    large = [Wordy("large", fails=ModelNotServed("This pool has no model mistyped.")) for _ in range(2)]
    gpus = [Replica(f"g{number}", "gpu", each) for number, each in enumerate(large)]
    async with aurora(redis_server, *gpus, Replica("o1", "ollama", Wordy()), people=people(chain)) as (stack, mesh):
        assert ends(await answer(stack)).pool == "ollama"
        assert len(mesh.calls) == 2, "the pool's other replica has it neither"
        await mesh.sleep("o1")
        await until(lambda: all(record.pool == "gpu" for record in stack.roster._known))
        end = (await answer(stack, "Again"))[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.retryable, end.message) == ("model_not_served", True, "This pool has no model mistyped.")


async def test_where_another_replica_than_the_one_wanted_ran_a_turn_it_is_that_one_that_gave_it_up(
    redis_server: RedisProcess,
) -> None:
    """Serve sends a turn to another replica where the one wanted has no room."""
    wanted = Replica("g1", "gpu", Wordy("large"), node="aurora", passes_on=1)
    broken = Replica("g2", "gpu", Wordy("large", fails=EngineUnavailable("Gone."), after=2))
    async with aurora(redis_server, wanted, broken) as (stack, mesh):
        end = ends(await answer(stack))
        assert stack.roster.place(CHAIN).replica == "g1"
    assert (end.generated_on, end.attempt) == ("aurora", 2)
    assert mesh.calls == ["g1", "g1"]


async def test_a_replica_without_room_in_whose_place_a_broken_one_is_asked_is_not_asked_again_and_again(
    redis_server: RedisProcess,
) -> None:
    wanted = Replica("g1", "gpu", Wordy("large"), node="aurora", passes_on=9)
    broken = Replica("g2", "gpu", Wordy("large", fails=EngineUnavailable("Gone.")))
    async with aurora(redis_server, wanted, broken, Replica("g3", "gpu", Wordy("large"))) as (stack, mesh):
        assert ends(await answer(stack)).attempt == 2
    assert mesh.calls == ["g1", "g3"]


async def test_a_turn_that_every_engine_gives_up_ends_after_three_attempts(redis_server: RedisProcess) -> None:
    engines = [Wordy("large", fails=EngineUnavailable("Gone.")) for _ in range(5)]
    async with aurora(redis_server, *(Replica(f"g{n}", "gpu", each) for n, each in enumerate(engines))) as (stack, _):
        end = (await answer(stack))[-1]
    assert isinstance(end, Failed)
    assert (end.code, end.pool, end.model) == ("attempts_exhausted", "gpu", "large")
    assert sum(len(each.prompts) for each in engines) == 3


async def test_a_full_pool_hands_on_and_a_failing_one_is_not_asked(redis_server: RedisProcess) -> None:
    gpu, ollama = Wordy("large", slots=1, pause_s=0.2), Wordy()
    async with aurora(redis_server, Replica("g1", "gpu", gpu), Replica("o1", "ollama", ollama)) as (stack, mesh):
        async with Listening(stack.service.ask(Ask(client_id="bob", message="Take your time"))) as long:
            await long.first("piece")
            assert ends(await answer(stack)).pool == "ollama"
            assert ends(await long.end()).pool == "gpu"
        mesh["g1"].status = ReplicaStatus.FAILING
        await until(lambda: stack.roster.place(CHAIN).choice.pool == "ollama")
        assert ends(await answer(stack, "Again")).pool == "ollama"
    assert mesh.calls == ["g1", "o1", "o1"]


async def test_a_follow_up_goes_to_the_replica_that_answered_before_and_another_conversation_to_this_node(
    redis_server: RedisProcess,
) -> None:
    near, far = Replica("g1", "gpu", Wordy("large"), node="aurora"), Replica("g2", "gpu", Wordy("large"))
    async with aurora(redis_server, near, far) as (stack, mesh):
        mesh["g1"].status = ReplicaStatus.FAILING
        await until(lambda: stack.roster.place(CHAIN).replica == "g2")
        end = ends(await answer(stack))
        mesh["g1"].status = ReplicaStatus.READY
        await until(lambda: stack.roster.place(CHAIN).replica == "g1")
        ends(await answer(stack, "And then?", conversation_id=end.conversation_id))
        ends(await whole(stack.service.ask(Ask(client_id="bob", message="Hello"))))
    assert mesh.calls == ["g2", "g2", "g1"]


async def test_the_pools_page_says_how_every_replica_is(redis_server: RedisProcess) -> None:
    async with (
        aurora(redis_server, Replica("s1", "scripted", Wordy(slots=4), node="iceland")) as (stack, _),
        stack.serving() as base,
        httpx.AsyncClient(base_url=base) as http,
    ):
        pools = (await http.get("/api/pools")).json()["pools"]
    assert [(pool["pool"], pool["language_model"]) for pool in pools] == [("scripted", False)]
    (replica,) = pools[0]["replicas"]
    assert (replica["replica"], replica["node"], replica["status"], replica["slots"]) == ("s1", "iceland", "ready", 4)
