"""Bad frames: an error frame each, nothing stored, nothing logged as an error, the connection lives."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serve_app.api.websocket import FLOOD_LIMIT, FRAME_BYTES, FRAMES_AT_ONCE
from tests.support.clients import Device, Frame, check_error, everything
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
async def url(stack: Stack) -> AsyncIterator[str]:
    async with stack.serving() as base:
        yield base


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


TURN = "turn_" + "a" * 26


def frame(kind: object, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


BAD_FRAMES: dict[str, str | bytes] = {
    "empty": "",
    "no JSON": "hello",
    "cut": '{"type": "ch',
    "a list": "[]",
    "null": "null",
    "a number": "7",
    "a text": '"chat"',
    "no type": "{}",
    "unknown type": frame("shout"),
    "long type": frame("x" * 50_000),
    "type list": frame([1]),
    "type object": frame({"a": 1}),
    "type null": frame(None),
    "NUL": frame("chat\x00"),
    "half a pair": frame("chat", message="\ud800"),
    "half a pair as type": frame("\ud800"),
    "half a pair as message_id": frame("chat", message_id="\ud800"),
    "half a pair in an unknown frame": frame("shout", message_id="\udfff"),
    "half a pair in a key": frame("chat", message="x", options={"\ud800": 1}),
    "NaN": frame("resume", turn_id=TURN, after=float("nan")),
    "negative": frame("resume", turn_id=TURN, after=-1),
    "huge": '{"type": "resume", "after": ' + "9" * 5_000 + "}",
    "deep": "[" * 100_000,
    "deep object": '{"type":' * 20_000 + "1" + "}" * 20_000,
    "binary": b'{"type": "ping"}',
    "binary junk": b"\x00\xff\xfe",
    "too large": frame("chat", message="x", more="y" * FRAME_BYTES),
    "bad turn": frame("stop", turn_id="a:b"),
    "no such turn": frame("stop", turn_id=TURN),
    "no such turn to resume": frame("resume", turn_id=TURN),
    "bad conversation": frame("chat", message="x", conversation_id="conv_a:b_1"),
    "absent conversation": frame("chat", message="x", conversation_id="conv_ann_1"),
    "nobody": frame("chat", message="x", personality="nobody"),
    "bad message_id": frame("chat", message="x", message_id="a b"),
    "bad options": frame("chat", message="x", options={f"o{i}": 1 for i in range(5_000)}),
}


@pytest.mark.parametrize("bad", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_a_malformed_frame_gets_one_error_frame_and_the_connection_lives(
    url: str, redis_server: RedisProcess, bad: str | bytes
) -> None:
    async with Device(url, "ann") as device:
        await device.alive()
        before = everything(redis_server)
        await device.socket.send(bad)
        answer = await device.next()
        assert answer["type"] == "error"
        check_error(answer["error"])
        assert len(json.dumps(answer)) < 2_000
        assert await device.alive() == []
        assert everything(redis_server) == before
        await device.chat("Are you still there?")
        assert (await device.next())["content"]


async def test_an_error_frame_names_the_message_it_refuses(url: str) -> None:
    async with Device(url, "ann") as device:
        await device.send(type="chat", message="", message_id="m-7")
        assert (await device.next())["message_id"] == "m-7"


@pytest.mark.parametrize("bad", ["-a", "a%0A", "a%00", "a:b", "%C3%A4", "a" * 65, "a%20b"])
async def test_a_connection_with_a_bad_client_id_is_told_so_and_not_to_come_back(
    url: str, redis_server: RedisProcess, bad: str
) -> None:
    before = everything(redis_server)
    async with Device(url, bad) as device:
        check_error((await device.next())["error"])
        await device.socket.wait_closed()
        assert 4500 <= (device.socket.close_code or 0) <= 4999
    assert everything(redis_server) == before


@pytest.mark.parametrize("path", ["", "..%2fann", "ann/more"])
async def test_an_address_that_is_no_connections_is_refused_before_it_opens(
    url: str, redis_server: RedisProcess, path: str
) -> None:
    before = everything(redis_server)
    with pytest.raises(InvalidStatus):
        await Device(url, path).__aenter__()
    assert everything(redis_server) == before


async def test_a_flood_of_frames_gets_one_error_and_once_it_is_over_the_connection_serves_again(url: str) -> None:
    async with Device(url, "ann") as device:
        for _ in range(int(FRAMES_AT_ONCE) + 100):
            await device.send(type="ping")
        error = (await device.until("error"))[-1]["error"]
        assert (error["code"], error["retryable"]) == ("too_many_frames", True)
        frames: list[Frame] = []
        async with asyncio.timeout(10):
            while not frames:  # dropped until the bucket has a frame again
                await device.chat("Hello", message_id="m-1")
                with contextlib.suppress(TimeoutError):
                    frames = await device.until("done", timeout=0.3)
        assert frames[-1]["content"]


async def test_who_does_not_stop_flooding_is_disconnected_and_may_come_back(url: str) -> None:
    async with Device(url, "ann") as device:
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionClosed):
                for _ in range(FLOOD_LIMIT * 10):
                    await device.send(type="ping")
                async for _ in device.socket:  # what came before the close
                    pass
        assert device.socket.close_code == 4029
    async with Device(url, "ann") as device:
        assert await device.alive() == []
