"""Bad input over REST and WebSocket: a clear refusal, nothing stored, nothing logged as an error, the connection lives."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serve_app.api.body_limit import BODY_BYTES
from serve_app.api.websocket import FLOOD_LIMIT, FRAME_BYTES, FRAMES_AT_ONCE
from serve_app.api.wire import MESSAGE_BYTES
from serve_app.chat.options import OptionLimits
from serve_app.chat.service import ServiceConfig
from tests.support.clients import Device, Frame, check_whole, everything
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack

pytestmark = pytest.mark.integration
JSON = {"Content-Type": "application/json"}
TOO_LONG = "x" * (MESSAGE_BYTES + 1)
TOO_LONG_IN_BYTES = "é" * (MESSAGE_BYTES // 2 + 1)
BAD_IDS = ["", " ", "-a", ".a", "a" * 65, "a b", "a\n", "\na", "a:b", "a/b", "../a", "a\x00", "ä", "٣", "a\u2028", "{a}", "a*", "a\r\nb"]
BAD_MESSAGES = ["", " \n\t ", "\u00a0\u2003", TOO_LONG, TOO_LONG_IN_BYTES, None, 5, True, [], {}, ["x"]]
BAD_OPTIONS = [
    {"temperature": 2.1}, {"temperature": -0.1}, {"temperature": "hot"}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0},
    {"max_tokens": 10**9}, {"max_tokens": 1.5}, {"seed": -1}, {"seed": 2**53}, {"seed": 10**400}, {"words": 0}, {"words": 5_001},
    {"words_per_second": 0}, {"words_per_second": 1e9}, {"divergent": "perhaps"}, {"temprature": 1}, [], 7, "words",
]  # fmt: skip


@pytest.fixture
async def url(stack: Stack) -> AsyncIterator[str]:
    async with stack.serving() as base:
        yield base


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


def error_of(answer: httpx.Response) -> Frame:
    """Return the error of a refusal; it has the one shape, is short, and repeats no long input."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert len(answer.content) < 2_000
    body = answer.json()
    assert set(body) == {"error"}
    return check_error(body["error"])


def check_error(error: Frame) -> Frame:
    assert {"code", "message", "retryable"} <= set(error) <= {"code", "message", "retryable", "turn_id"}
    assert error["message"]
    assert isinstance(error["retryable"], bool)
    assert "Traceback" not in error["message"]
    return error


async def refused(client: httpx.AsyncClient, server: RedisProcess, method: str, path: str, **request: object) -> tuple[int, str]:
    """Send a request that must be refused without a trace in Redis; return status and code."""
    before = everything(server)
    answer = await client.request(method, path, **request)  # type: ignore[arg-type]
    error = error_of(answer)
    assert everything(server) == before
    return answer.status_code, error["code"]


@pytest.mark.parametrize("message", BAD_MESSAGES, ids=lambda m: repr(m)[:12])
async def test_a_message_that_is_none_is_refused(client: httpx.AsyncClient, redis_server: RedisProcess, message: object) -> None:
    too_long = message in (TOO_LONG, TOO_LONG_IN_BYTES)
    expected = (413, "message_too_large") if too_long else (422, "invalid_request")
    assert await refused(client, redis_server, "POST", "/api/chat", json={"client_id": "ann", "message": message}) == expected
    async with Device(str(client.base_url), "ann") as device:
        before = everything(redis_server)
        await device.chat(message)  # type: ignore[arg-type]
        assert check_error((await device.next())["error"])["code"] == expected[1]
        assert await device.alive() == []
        assert everything(redis_server) == before


async def test_a_message_of_exactly_the_limit_is_answered(client: httpx.AsyncClient) -> None:
    for message in ("x" * MESSAGE_BYTES, "é" * (MESSAGE_BYTES // 2)):
        answer = await client.post("/api/chat", json={"client_id": "ann", "message": message})
        assert answer.status_code == 200
        page = (await client.get(f"/api/conversations/{answer.json()['conversation_id']}/history")).json()
        assert page["messages"][-2]["content"] == message


async def test_a_message_of_any_characters_is_kept_to_the_letter(client: httpx.AsyncClient) -> None:
    message = 'a\x00b \x7f \u2028 "\\ \U0001f600 \r\n ]]> ${x} %s \ufffe'
    answer = await client.post("/api/chat", json={"client_id": "ann", "message": message})
    page = (await client.get(f"/api/conversations/{answer.json()['conversation_id']}/history")).json()
    assert page["messages"][0]["content"] == message


@pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
async def test_an_id_of_the_wrong_form_is_refused_wherever_it_stands(
    client: httpx.AsyncClient, redis_server: RedisProcess, bad: str
) -> None:
    for body in (
        {"client_id": bad, "message": "x"},
        {"client_id": "ann", "message": "x", "conversation_id": f"conv_{bad}_1"},
        {"client_id": "ann", "message": "x", "conversation_id": bad},
        {"client_id": "ann", "message": "x", "personality": bad},
    ):
        # `conv_-a_1` and the like are wrong inside as well
        assert await refused(client, redis_server, "POST", "/api/chat", json=body) == (422, "invalid_request"), body
    for path in ("/api/sessions", "/api/conversations"):
        assert await refused(client, redis_server, "POST", path, json={"client_id": bad}) == (422, "invalid_request")
    assert await refused(client, redis_server, "GET", "/api/conversations", params={"client_id": bad}) == (422, "invalid_request")


@pytest.mark.parametrize("bad", ["turn_", "turn_" + "A" * 26, "turn_" + "a" * 27, "turn_" + "a" * 26 + "%0A", "%00", "..%2f..", "a:b", "%C3%A4"])
async def test_a_turn_or_conversation_in_a_path_that_has_not_the_form_is_refused(
    client: httpx.AsyncClient, redis_server: RedisProcess, bad: str
) -> None:
    for method, path in (
        ("GET", f"/api/turns/{bad}"),
        ("DELETE", f"/api/turns/{bad}"),
        ("GET", f"/api/turns/{bad}/events"),
        ("GET", f"/api/conversations/{bad}/history"),
        ("DELETE", f"/api/conversations/{bad}?client_id=ann"),
    ):
        assert await refused(client, redis_server, method, path) in ((422, "invalid_request"), (404, "not_found"))


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=lambda o: repr(o)[:24])
async def test_options_out_of_their_bounds_are_refused(client: httpx.AsyncClient, redis_server: RedisProcess, options: object) -> None:
    body = {"client_id": "ann", "message": "x", "options": options}
    status, code = await refused(client, redis_server, "POST", "/api/chat", content=json.dumps(body), headers=JSON)
    assert status in (400, 422)
    assert code in ("invalid_request", "option_refused")


@pytest.mark.parametrize("options", [{"words": 3}, {"words_per_second": 5}, {"divergent": False}])
async def test_drill_options_are_refused_where_the_configuration_does_not_allow_them(
    redis_server: RedisProcess, options: dict[str, object]
) -> None:
    strict = ServiceConfig(limits=OptionLimits(drill_options=False))
    async with Stack(redis_server.url, service=strict) as stack, stack.serving() as url:
        async with httpx.AsyncClient(base_url=url) as client, Device(url, "ann") as device:
            body = {"client_id": "ann", "message": "x", "options": options}
            assert await refused(client, redis_server, "POST", "/api/chat", json=body) == (422, "option_refused")
            await device.chat("x", options=options)
            assert (await device.next())["error"]["code"] == "option_refused"
            await device.chat("x", options={"max_tokens": 9})
            assert (await device.next())["type"] == "done"


BAD_BODIES = {
    "nothing": b"", "no JSON": b"hello", "cut": b'{"message": "x"', "a list": b"[]", "a text": b'"x"', "null": b"null", "a number": b"7",
    "not UTF-8": b'{"message": "\xff", "client_id": "ann"}', "half a pair": b'{"message": "\\ud800", "client_id": "ann"}',
    "half a pair in a key": b'{"message": "x", "client_id": "ann", "options": {"\\ud800": 1}}',
    "NaN": b'{"message": "x", "client_id": "ann", "options": {"temperature": NaN}}',
    "NaN speed": b'{"message": "x", "client_id": "ann", "options": {"words_per_second": NaN}}',
    "Infinity": b'{"message": "x", "client_id": "ann", "options": {"words": Infinity}}',
    "a huge number": b'{"message": "x", "client_id": "ann", "options": {"seed": ' + b"9" * 9_000 + b"}}",
    "deep": b"[" * 200_000, "deep object": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "many unknown options": json.dumps({"message": "x", "client_id": "ann", "options": {f"o{i}": i for i in range(9_000)}}).encode(),
    "a long unknown option": json.dumps({"message": "x", "client_id": "ann", "options": {"o" * 90_000: 1}}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_is_no_request_is_refused(client: httpx.AsyncClient, redis_server: RedisProcess, body: bytes) -> None:
    for path in ("/api/chat", "/api/sessions", "/api/conversations"):
        if path == "/api/chat" or b"ann" not in body:
            status, code = await refused(client, redis_server, "POST", path, content=body, headers=JSON)
            assert (status in (400, 422), code) == (True, "invalid_request")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/xml"])
async def test_a_body_of_another_type_is_refused(client: httpx.AsyncClient, redis_server: RedisProcess, kind: str) -> None:
    body = b'{"client_id": "ann", "message": "x"}'
    status, code = await refused(client, redis_server, "POST", "/api/chat", content=body, headers={"Content-Type": kind})
    assert (status, code) == (422, "invalid_request")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413_whether_or_not_it_says_its_length(
    client: httpx.AsyncClient, redis_server: RedisProcess, chunked: bool
) -> None:
    body = json.dumps({"client_id": "ann", "message": "x", "more": "y" * BODY_BYTES}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65_536):
            yield body[at : at + 65_536]

    content = chunks() if chunked else body
    assert await refused(client, redis_server, "POST", "/api/chat", content=content, headers=JSON) == (413, "message_too_large")
    assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("key", ["", " ", "a b", "a" * 129, "ä", "a/b", '"k"'])
async def test_a_bad_idempotency_key_is_refused(client: httpx.AsyncClient, redis_server: RedisProcess, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    body = {"client_id": "ann", "message": "x"}
    assert await refused(client, redis_server, "POST", "/api/chat", json=body, headers=headers) == (422, "invalid_request")


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=-1", "limit=x", "limit=1e2", "limit=" + "9" * 5_000, "before=-1", "before=1.5", "limit="])
async def test_bad_limits_are_refused(client: httpx.AsyncClient, redis_server: RedisProcess, query: str) -> None:
    asked = await client.post("/api/chat", json={"client_id": "ann", "message": "x"})
    path = f"/api/conversations/{asked.json()['conversation_id']}/history"
    assert await refused(client, redis_server, "GET", f"{path}?{query}") == (422, "invalid_request")
    if query.startswith("limit"):
        assert await refused(client, redis_server, "GET", f"/api/sessions?{query}") == (422, "invalid_request")
        assert await refused(client, redis_server, "GET", f"/api/conversations?client_id=ann&{query}") == (422, "invalid_request")


async def test_what_does_not_exist_is_404(client: httpx.AsyncClient, redis_server: RedisProcess) -> None:
    chat = {"client_id": "ann", "message": "x"}
    new = {"client_id": "ann", "personality": "nobody"}
    absent = {**chat, "conversation_id": "conv_ann_1"}
    assert await refused(client, redis_server, "POST", "/api/chat", json={**chat, **new}) == (404, "no_personality")
    assert await refused(client, redis_server, "POST", "/api/conversations", json=new) == (404, "no_personality")
    assert await refused(client, redis_server, "POST", "/api/chat", json=absent) == (404, "no_conversation")
    assert await refused(client, redis_server, "GET", "/api/conversations/conv_ann_1/history") == (404, "no_conversation")
    assert await refused(client, redis_server, "GET", f"/api/turns/turn_{'a' * 26}") == (404, "no_turn")
    assert await refused(client, redis_server, "DELETE", f"/api/turns/turn_{'a' * 26}") == (404, "no_turn")


BAD_FRAMES: dict[str, str | bytes] = {
    "empty": "", "no JSON": "hello", "cut": '{"type": "ch', "a list": "[]", "null": "null", "a number": "7", "a text": '"chat"',
    "no type": "{}", "unknown type": '{"type": "shout"}', "long type": json.dumps({"type": "x" * 50_000}), "type list": '{"type": [1]}',
    "type object": '{"type": {"a": 1}}', "type null": '{"type": null}', "half a pair as type": '{"type": "\\ud800"}',
    "half a pair as message_id": '{"type": "chat", "message_id": "\\ud800"}', "half a pair in unknown": '{"type": "x", "message_id": "\\udfff"}',
    "half a pair": '{"type": "chat", "message": "\\ud800"}', "half a pair in a key": '{"type": "chat", "message": "x", "options": {"\\ud800": 1}}',
    "NaN": '{"type": "resume", "turn_id": "turn_aaaaaaaaaaaaaaaaaaaaaaaaaa", "after": NaN}', "deep": "[" * 100_000,
    "deep object": '{"type":' * 20_000 + "1" + "}" * 20_000, "binary": b'{"type": "ping"}', "binary junk": b"\x00\xff\xfe",
    "too large": json.dumps({"type": "chat", "message": "x", "more": "y" * FRAME_BYTES}), "bad turn": '{"type": "stop", "turn_id": "a:b"}',
    "no such turn": json.dumps({"type": "stop", "turn_id": "turn_" + "a" * 26}), "huge": '{"type": "resume", "after": ' + "9" * 5_000 + "}",
    "negative": json.dumps({"type": "resume", "turn_id": "turn_" + "a" * 26, "after": -1}), "NUL": '{"type": "chat\\u0000"}',
    "bad conversation": json.dumps({"type": "chat", "message": "x", "conversation_id": "conv_a:b_1"}),
    "absent conversation": json.dumps({"type": "chat", "message": "x", "conversation_id": "conv_ann_1"}),
    "nobody": json.dumps({"type": "chat", "message": "x", "personality": "nobody"}),
    "bad message_id": json.dumps({"type": "chat", "message": "x", "message_id": "a b"}),
    "bad options": json.dumps({"type": "chat", "message": "x", "options": {f"o{i}": 1 for i in range(5_000)}}),
}  # fmt: skip


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_a_malformed_frame_gets_one_error_frame_and_the_connection_lives(
    url: str, redis_server: RedisProcess, frame: str | bytes
) -> None:
    async with Device(url, "ann") as device:
        before = everything(redis_server)
        await device.socket.send(frame)
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


@pytest.mark.parametrize("bad", ["-a", "a%0A", "a%00", "a:b", "%C3%A4", "a" * 65, "a%20b", "..%2fann", "%2e%2e"])
async def test_a_connection_with_a_bad_client_id_is_told_so_and_not_to_come_back(url: str, redis_server: RedisProcess, bad: str) -> None:
    before = everything(redis_server)
    try:
        async with Device(url, bad) as device:
            check_error((await device.next())["error"])
            with pytest.raises(ConnectionClosed) as closed:
                await device.next()
            assert closed.value.rcvd is not None
            assert 4500 <= closed.value.rcvd.code <= 4999
    except InvalidStatus as none:
        assert none.response.status_code in (403, 404)
    assert everything(redis_server) == before


async def test_a_flood_of_frames_gets_one_error_and_once_it_is_over_the_connection_serves_again(url: str) -> None:
    async with Device(url, "ann") as device:
        for _ in range(int(FRAMES_AT_ONCE) + 100):
            await device.send(type="ping")
        async with asyncio.timeout(10):
            frames = await device.until("error")
            assert frames[-1]["error"]["code"] == "too_many_frames"
            assert frames[-1]["error"]["retryable"] is True
            while True:  # until the bucket has a frame again
                await device.send(type="chat", message="Hello", stream=True)
                if (await device.next(5))["type"] == "accepted":
                    break
        check_whole((await device.until("done")))


async def test_who_does_not_stop_flooding_is_disconnected_and_may_come_back(url: str) -> None:
    async with Device(url, "ann") as device:
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(20):
                for _ in range(FLOOD_LIMIT * 10):
                    await device.send(type="ping")
                while True:
                    await device.socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4029
    async with Device(url, "ann") as device:
        assert await device.alive() == []
