"""One WebSocket connection: the seed's client, streaming, resuming, stopping; and what it survives."""

import asyncio
import json
import logging

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.support.clients import Device, check_whole, paced, text_of
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def test_the_seeds_client_gets_one_frame_per_answer_with_content_and_node(stack: Stack) -> None:
    async with stack.serving() as url, connect(f"{url.replace('http', 'ws')}/ws/user_123") as socket:
        for message in ("Hello Robbie!", "And again"):
            await socket.send(json.dumps({"type": "chat", "message": message, "personality": "robbie"}))
            response = json.loads(await socket.recv())
            assert response["content"]
            assert response["node"] == "aurora"
            assert response["personality"] == "robbie"
        await socket.send(json.dumps({"type": "ping"}))
        assert json.loads(await socket.recv())["type"] == "pong"  # nothing came in between


async def test_a_frame_that_asks_for_a_stream_gets_every_event_in_order(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", stream=True, options=paced(40, 200))
        frames = await device.until("done")
        types = [f["type"] for f in frames]
        assert types[:2] == ["accepted", "started"]
        assert set(types[2:-1]) == {"piece"}
        assert len(check_whole(frames).split()) == 40
        history = await stack.service.history(frames[-1]["conversation_id"], limit=5)
        assert history.messages[-1].content == frames[-1]["content"]
        assert await device.alive() == []


async def test_an_address_that_asks_for_a_stream_needs_no_word_in_the_frames(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann", query="?stream=true") as device:
        await device.chat("Hello", options=paced(20, 200))
        frames = await device.until("done")
        assert frames[0]["type"] == "accepted"
        check_whole(frames)


async def test_a_connection_that_has_once_asked_for_a_stream_gets_every_event_of_later_turns(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", stream=True)
        await device.until("done")
        await device.chat("Hello")
        frames = await device.until("done")
        assert "piece" in [f["type"] for f in frames]
        check_whole(frames)


async def test_a_message_id_is_given_back_with_accepted_and_answered_once(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", stream=True, message_id="m-1")
        first = await device.until("done")
        assert first[0]["message_id"] == "m-1"
        await device.chat("Hello", stream=True, message_id="m-1")
        again = await device.until("done")
        assert again[-1] == first[-1]
        check_whole(again)
        history = await stack.service.history(first[-1]["conversation_id"], limit=9)
        assert history.total == 2
        await device.chat("Something else", message_id="m-1")
        error = await device.next()
        assert (error["error"]["code"], error["message_id"]) == ("idempotency_mismatch", "m-1")


async def test_a_message_sent_again_over_a_new_connection_while_it_is_answered_is_attached(stack: Stack) -> None:
    async with stack.serving() as url:
        async with Device(url, "ann") as lost:
            await lost.chat("Hello", stream=True, message_id="m-1", options=paced(60, 60))
            before = await lost.until("piece")
        async with Device(url, "ann") as device:
            await device.chat("Hello", stream=True, message_id="m-1", options=paced(60, 60))
            ends = [f for f in await device.until("done") if f["type"] == "done"]
            assert ends[0]["turn_id"] == before[0]["turn_id"]
            assert await device.alive() == []
    assert (await stack.service.history(ends[0]["conversation_id"], limit=9)).total == 2


@pytest.mark.parametrize("after", [0, 1, 7])
async def test_a_turn_is_resumed_after_any_piece_while_it_runs_and_after_it_has_ended(stack: Stack, after: int) -> None:
    async with stack.serving() as url:
        async with Device(url, "ann") as lost:
            await lost.chat("Hello", stream=True, options=paced(60, 60))
            before = await lost.until("piece")
            while before[-1].get("seq", 0) < max(after, 1):
                before.append(await lost.next())
        turn = before[0]["turn_id"]
        seen = [f for f in before if f["type"] != "piece" or f["seq"] <= after] if after else []
        for _ in range(2):  # while it runs, and after its end
            async with Device(url, "bob") as stranger:
                await stranger.send(type="resume", turn_id=turn, after=after)
                assert (await stranger.next())["error"]["code"] == "no_turn"
            async with Device(url, "ann") as device:
                await device.send(type="resume", turn_id=turn, after=after)
                rest = await resumed(device, after)
                assert len(check_whole(seen + rest).split()) == 60
                assert await device.alive() == []


async def resumed(device: Device, after: int) -> list[dict[str, object]]:
    """Return what the resume brings; a connection that is new follows the open turns from the start before it resumes one."""
    frames = await device.until("done")
    starts = [i for i, f in enumerate(frames) if f["type"] == "piece" and f["seq"] == after + 1]
    return frames[starts[-1] :]


async def test_resuming_twice_on_one_connection_leaves_one_follower_and_one_end(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", stream=True, options=paced(60, 60))
        turn = (await device.next())["turn_id"]
        for _ in range(2):
            await device.until("piece")
            await device.send(type="resume", turn_id=turn, after=0)
        frames = await device.until("done")
        begin = max(i for i, f in enumerate(frames) if f["type"] == "piece" and f["seq"] == 1)
        check_whole(frames[begin:])
        assert await device.alive() == []


async def test_resuming_beyond_the_log_rewinds_and_gives_the_whole(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello")
        end = await device.next()
        await device.send(type="resume", turn_id=end["turn_id"], after=4_000)
        frames = await device.until("done")
        assert frames[0]["type"] == "rewind"
        assert text_of(frames) == end["content"]


async def test_stop_ends_the_turn_once_for_a_streaming_and_for_a_seeds_client(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device, Device(url, "ann") as seeds:
        await seeds.alive()
        await device.chat("Hello", stream=True, options=paced(1_000, 100))
        frames = [*await device.until("piece")]
        await device.send(type="stop", turn_id=frames[0]["turn_id"])
        frames += await device.until("stopped")
        said = check_whole(frames)
        other = await seeds.next()
        assert (other["type"], other["content"]) == ("stopped", said)
        await device.send(type="stop", turn_id=frames[0]["turn_id"])  # again: nothing
        assert await device.alive() == []
        assert await seeds.alive() == []


async def test_somebody_elses_turn_can_neither_be_resumed_nor_stopped(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as ann, Device(url, "bob") as bob:
        await ann.chat("Hello", stream=True, options=paced(40, 80))
        turn = (await ann.next())["turn_id"]
        for kind in ("resume", "stop"):
            await bob.send(type=kind, turn_id=turn)
            assert (await bob.next())["error"]["code"] == "no_turn"
        assert (await ann.until("done", "stopped"))[-1]["type"] == "done"
        assert await bob.alive() == []


async def test_a_second_message_to_an_open_conversation_is_refused_and_the_first_goes_on(stack: Stack) -> None:
    async with stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", options=paced(40, 80))
        await device.chat("Hello?", message_id="m-2")
        error = await device.next()
        assert (error["error"]["code"], error["message_id"]) == ("turn_in_progress", "m-2")
        assert error["error"]["turn_id"]
        end = await device.next()
        assert (end["type"], end["turn_id"]) == ("done", error["error"]["turn_id"])


async def test_an_answer_goes_on_when_its_connection_is_cut_without_a_word(stack: Stack) -> None:
    async with stack.serving() as url:
        async with Device(url, "ann") as device:
            await device.chat("Hello", stream=True, options=paced(60, 60))
            turn = (await device.until("piece"))[0]["turn_id"]
            device.socket.transport.abort()

        async def state() -> bool:
            return (await stack.service.turn(turn)).state == "done"

        await until(state, 10)
        snapshot = await stack.service.turn(turn)
        assert snapshot.reply is not None
        assert len(snapshot.reply.content.split()) == 60


async def test_a_new_connection_of_the_seeds_kind_gets_the_answer_of_an_open_turn(stack: Stack) -> None:
    async with stack.serving() as url:
        async with Device(url, "ann") as device:
            await device.chat("Hello", options=paced(40, 60))
            await device.alive()
        async with Device(url, "ann") as device:
            end = await device.next()
            assert (end["type"], len(end["content"].split())) == ("done", 40)
            assert await device.alive() == []
        async with Device(url, "ann") as device:  # what had ended before is not told again
            assert await device.alive() == []


async def test_connecting_begins_a_session_and_leaving_keeps_it(stack: Stack) -> None:
    async with stack.serving() as url, httpx.AsyncClient(base_url=url) as http:
        async with Device(url, "ann") as device:
            await device.alive()
        sessions = (await http.get("/api/sessions")).json()["sessions"]
        assert [s["client_id"] for s in sessions] == ["ann"]


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_while_redis_is_away_a_connection_lives_and_then_the_answer_goes_on(
    own_redis: RedisProcess, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with Stack(own_redis.url) as stack, stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", stream=True, options=paced(80, 40))
        frames = await device.until("piece")
        if how == "frozen":
            own_redis.freeze()
        else:
            own_redis.kill()
        frames += await device.alive()
        loop = asyncio.get_running_loop()
        loop.call_later(2.5, own_redis.thaw if how == "frozen" else own_redis.start)
        frames += await device.until("done", timeout=30)
        assert len(check_whole(frames).split()) == 80
        assert await device.alive() == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_message_sent_while_redis_is_away_is_refused_as_retryable_and_answered_when_sent_again(
    own_redis: RedisProcess,
) -> None:
    async with Stack(own_redis.url, patience_s=0.3) as stack, stack.serving() as url, Device(url, "ann") as device:
        await device.alive()
        own_redis.kill()
        await device.chat("Hello", message_id="m-1")
        error = await device.next()
        assert (error["error"]["code"], error["error"]["retryable"], error["message_id"]) == ("store_unavailable", True, "m-1")
        own_redis.start()
        await device.chat("Hello", message_id="m-1")
        assert (await device.next())["type"] == "done"


async def test_who_connects_while_redis_is_away_is_told_to_come_back(own_redis: RedisProcess) -> None:
    async with Stack(own_redis.url, patience_s=0.3) as stack, stack.serving() as url:
        own_redis.kill()
        async with Device(url, "ann") as device:
            assert (await device.next())["error"]["code"] == "store_unavailable"
            await device.socket.wait_closed()
            assert device.socket.close_code == 4003
