"""Bad input over REST: a clear refusal, nothing stored, nothing logged as an error."""

import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from serve_app.api.body_limit import BODY_BYTES
from serve_app.api.wire import MESSAGE_BYTES
from serve_app.chat.options import OptionLimits
from serve_app.chat.service import ServiceConfig
from tests.support.clients import Device, Frame, check_error, everything
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack

pytestmark = pytest.mark.integration
JSON = {"Content-Type": "application/json"}
TOO_LONG = "x" * (MESSAGE_BYTES + 1)
TOO_LONG_IN_BYTES = "é" * (MESSAGE_BYTES // 2 + 1)
BAD_IDS = [
    "",
    " ",
    "-a",
    ".a",
    "a" * 65,
    "a b",
    "a\n",
    "\na",
    "a:b",
    "a/b",
    "../a",
    "a\x00",
    "ä",
    "٣",
    "a\u2028",
    "{a}",
    "a*",
    "a\r\nb",
]
BAD_MESSAGES = ["", " \n\t ", "\u00a0\u2003", TOO_LONG, TOO_LONG_IN_BYTES, None, 5, True, [], {}, ["x"]]
BAD_OPTIONS = [
    {"temperature": 2.1}, {"temperature": -0.1}, {"temperature": "hot"}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0},
    {"max_tokens": 10**9}, {"max_tokens": 1.5}, {"seed": -1}, {"seed": 2**53}, {"seed": 10**400}, {"words": 0}, {"words": 5_001},
    {"words_per_second": 0}, {"words_per_second": 1e9}, {"divergent": "perhaps"}, {"temprature": 1},
    {"context_window": 4_096}, [], 7, "words",
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
        await device.alive()
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


@pytest.mark.parametrize(
    "bad", ["turn_", "turn_" + "A" * 26, "turn_" + "a" * 27, "turn_" + "a" * 26 + "%0A", "%00", "..%2f..", "a:b", "%C3%A4"]
)
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
async def test_options_out_of_their_bounds_are_refused(
    client: httpx.AsyncClient, redis_server: RedisProcess, options: object
) -> None:
    body = {"client_id": "ann", "message": "x", "options": options}
    status, code = await refused(client, redis_server, "POST", "/api/chat", content=json.dumps(body), headers=JSON)
    assert status in (400, 422)
    assert code in ("invalid_request", "option_refused")


@pytest.mark.parametrize("options", [{"words": 3}, {"words_per_second": 5}, {"divergent": False}])
async def test_drill_options_are_refused_where_the_configuration_does_not_allow_them(
    redis_server: RedisProcess, options: dict[str, object]
) -> None:
    strict = ServiceConfig(limits=OptionLimits(drill_options=False))
    async with (
        Stack(redis_server.url, service=strict) as stack,
        stack.serving() as url,
        httpx.AsyncClient(base_url=url) as client,
        Device(url, "ann") as device,
    ):
        await device.alive()
        body = {"client_id": "ann", "message": "x", "options": options}
        assert await refused(client, redis_server, "POST", "/api/chat", json=body) == (422, "option_refused")
        await device.chat("x", options=options)
        assert (await device.next())["error"]["code"] == "option_refused"
        await device.chat("x", options={"max_tokens": 9})
        assert (await device.next())["type"] == "done"


def body_with(**fields: object) -> bytes:
    return json.dumps({"message": "x", "client_id": "ann", **fields}).encode()


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "cut": b'{"message": "x"',
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "a number": b"7",
    "not UTF-8": b'{"message": "\xff", "client_id": "ann"}',
    "half a pair": body_with(message="\ud800"),
    "half a pair in a key": body_with(options={"\ud800": 1}),
    "half a pair in an id": body_with(client_id="\ud800"),
    "half a pair in a title": body_with(message=None, title="\ud800"),
    "NaN": body_with(options={"temperature": float("nan")}),
    "NaN speed": body_with(options={"words_per_second": float("nan")}),
    "Infinity": body_with(options={"words": float("inf")}),
    "a huge number": b'{"message": "x", "client_id": "ann", "options": {"seed": ' + b"9" * 9_000 + b"}}",
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "many unknown options": body_with(options={f"o{i}": i for i in range(9_000)}),
    "a long unknown option": body_with(options={"o" * 90_000: 1}),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_body_that_is_no_request_is_refused(client: httpx.AsyncClient, redis_server: RedisProcess, body: bytes) -> None:
    paths = ["/api/chat"] if b"ann" in body else ["/api/chat", "/api/sessions", "/api/conversations"]
    for path in [*paths, *(["/api/conversations"] if b"title" in body else [])]:
        status, code = await refused(client, redis_server, "POST", path, content=body, headers=JSON)
        assert (status in (400, 422), code) == (True, "invalid_request")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/xml"]
)
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


@pytest.mark.parametrize("key", ["", "a b", "a" * 129, "ä", "a/b", '"k"'])
async def test_a_bad_idempotency_key_is_refused(client: httpx.AsyncClient, redis_server: RedisProcess, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    body = {"client_id": "ann", "message": "x"}
    assert await refused(client, redis_server, "POST", "/api/chat", json=body, headers=headers) == (422, "invalid_request")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=-1", "limit=x", "limit=1e2", "limit=" + "9" * 5_000, "before=-1", "before=1.5", "limit="],
)
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
