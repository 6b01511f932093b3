"""What is measured of real turns: each once, where it ended; takeovers with the pause a follower saw; never per piece."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.asyncio.client import connect

from serve_app.chat import meter
from serve_app.chat.errors import EngineError
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from tests.support.clients import all_sse, paced
from tests.support.metering import Tally
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import new_turn
from tests.support.waiting import Listening, until, whole

pytestmark = pytest.mark.integration
SLOW = Options(words=150, words_per_second=150)
MESSAGE = "Tell me about the sea"


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
async def measured(redis_server: RedisProcess, tally: Tally) -> AsyncIterator[Stack]:
    async with Stack(redis_server.url, meter=tally) as running:
        yield running


async def ended(tally: Tally) -> dict[tuple[str, ...], int]:
    """The turns that were counted, by their labels; waits for the first, as a follower may hear of an end before its counting."""

    def turns() -> dict[tuple[str, ...], int]:
        return {key[1:]: count for key, count in tally.counts.items() if key[0] == meter.TURNS.name}

    return await until(turns)


async def test_a_turn_is_counted_once_with_personality_pool_model_and_outcome(measured: Stack, tally: Tally) -> None:
    await whole(measured.service.ask(Ask(client_id="ann", message=MESSAGE, personality="kristina")))
    assert await ended(tally) == {("kristina", "scripted", "scripted-1", "done", ""): 1}
    assert tally.counts[("aurora_attempts", "scripted", "scripted-1")] == 1
    assert tally.counts[("aurora_takeovers", "scripted")] == 0
    (first,) = tally.values[("aurora_first_piece_seconds",)]
    assert 0 < first < 5


async def test_what_is_measured_does_not_grow_with_the_pieces(measured: Stack, tally: Tally) -> None:
    events = await whole(measured.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW)))
    assert sum(event.type == "piece" for event in events) > 15
    beats = {("aurora_redis_seconds", name) for name in ("renew", "sweep")}
    await ended(tally)
    values = {key: len(seen) for key, seen in tally.values.items() if key not in beats}
    # The first claim with a personality is made of two calls: the second brings its document.
    assert values.pop(("aurora_redis_seconds", "claim")) <= 2
    assert values == {
        ("aurora_first_piece_seconds",): 1,
        ("aurora_redis_seconds", "begin"): 1,
        ("aurora_redis_seconds", "finish"): 1,
    }
    assert tally.counts.total() == 2, "an attempt and an end"


async def test_a_takeover_is_counted_with_the_pause_that_the_follower_saw(measured: Stack, tally: Tally) -> None:
    async with Listening(measured.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as heard:
        turn_id = (await heard.first("accepted")).turn_id
        await heard.pieces(5)
        measured.pool.kill_run(turn_id)
        await heard.end()
    assert tally.counts[("aurora_attempts", "scripted", "scripted-1")] == 2
    assert tally.counts[("aurora_takeovers", "scripted")] == 1
    assert await ended(tally) == {("robbie", "scripted", "scripted-1", "done", ""): 1}
    (pause,) = tally.values[("aurora_takeover_pause_seconds",)]
    assert 0 < pause < 5


async def test_a_stopped_turn_is_counted_once_however_often_it_is_stopped(measured: Stack, tally: Tally) -> None:
    async with Listening(measured.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as heard:
        turn_id = (await heard.first("piece")).turn_id
        await asyncio.gather(*(measured.service.stop(turn_id) for _ in range(3)))
        await heard.end()
    await until(lambda: not measured.generator.running)
    assert await ended(tally) == {("robbie", "scripted", "scripted-1", "stopped", ""): 1}


async def test_a_turn_that_nobody_claimed_has_no_pool_and_no_model_when_it_is_stopped(measured: Stack, tally: Tally) -> None:
    new = new_turn()
    await measured.turns.begin(new)
    await measured.service.stop(new.turn_id)
    assert await ended(tally) == {("robbie", "none", "none", "stopped", ""): 1}


async def test_a_failed_turn_is_counted_with_its_code(measured: Stack, tally: Tally) -> None:
    await whole(measured.service.ask(Ask(client_id="ann", message="drill-raise")))
    assert await ended(tally) == {("robbie", "scripted", "scripted-1", "failed", EngineError.code): 1}


async def test_connections_are_counted_while_they_are_open(measured: Stack, tally: Tally) -> None:
    def open_now(over: str) -> float:
        return tally.gauges.get(("aurora_connections", over), 0)

    async with measured.serving() as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        async with connect(f"{url.replace('http', 'ws')}/ws/ann"), connect(f"{url.replace('http', 'ws')}/ws/bob"):
            await until(lambda: open_now("websocket") == 2)
        await until(lambda: open_now("websocket") == 0)
        body = {"message": MESSAGE, "client_id": "ann", "stream": True, "options": paced(100, 100)}
        async with http.stream("POST", "/api/chat", json=body) as response:
            await anext(response.aiter_bytes())
            await until(lambda: open_now("sse") == 1)
        await until(lambda: open_now("sse") == 0)


async def test_a_client_that_comes_back_to_a_turn_is_a_resume(measured: Stack, tally: Tally) -> None:
    async with measured.serving() as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        answer = (await http.post("/api/chat", json={"message": MESSAGE, "client_id": "ann"})).json()
        await all_sse(http, "GET", f"/api/turns/{answer['turn_id']}/events?after=1")
        async with connect(f"{url.replace('http', 'ws')}/ws/ann") as socket:
            await socket.send(json.dumps({"type": "resume", "turn_id": answer["turn_id"], "after": 0}))
            while json.loads(await socket.recv())["type"] != "done":
                pass
    assert {key: count for key, count in tally.counts.items() if key[0] == "aurora_resumes"} == {
        ("aurora_resumes", "sse"): 1,
        ("aurora_resumes", "websocket"): 1,
    }
    assert len(tally.values[("aurora_first_piece_seconds",)]) == 1, "who comes later does not wait for a first piece"


async def test_running_and_waiting_turns_are_gauges_that_fall_back_to_nothing(measured: Stack, tally: Tally) -> None:
    async with Listening(measured.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as heard:
        await until(lambda: tally.gauges.get(("aurora_running_turns",)) == 1)
        await heard.end()
    await until(lambda: tally.gauges.get(("aurora_running_turns",)) == 0)
    await until(lambda: tally.gauges.get(("aurora_waiting_turns",)) == 0)


async def test_redis_that_was_away_and_is_back_is_a_reconnect_on_both_links(own_redis: RedisProcess, tally: Tally) -> None:
    async with Stack(own_redis.url, meter=tally) as stack:
        await stack.ping()
        own_redis.kill()
        await until(lambda: stack.scripts.away.since is not None)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: tally.counts[("aurora_redis_reconnects", "commands")] >= 1, 10)
        await until(lambda: tally.counts[("aurora_redis_reconnects", "bus")] == 1, 10)


async def test_the_last_takeover_is_kept_where_status_looks_for_it(measured: Stack, redis_server: RedisProcess) -> None:
    async with Listening(measured.service.ask(Ask(client_id="ann", message=MESSAGE, options=SLOW))) as heard:
        turn_id = (await heard.first("accepted")).turn_id
        await heard.pieces(3)
        measured.pool.kill_run(turn_id)
        await heard.end()
    with redis_server.client() as client:
        seconds, _ = client.time()
        last = json.loads(client.get("aurora:takeover:last"))
    assert abs(last.pop("at_ms") / 1000 - seconds) < 30
    assert last == {"turn_id": turn_id, "pool": "scripted", "attempt": 2, "from_node": "aurora", "to_node": "aurora"}
