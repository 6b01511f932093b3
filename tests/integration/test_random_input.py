"""Whatever a client sends: never a 5xx, never an exception's text, never a dead connection."""

import json
import logging
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.clients import Device
from tests.support.stack import Stack

pytestmark = pytest.mark.integration
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TURN, CONVERSATION = "turn_" + "a" * 26, "conv_ann_1"

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4),
    max_leaves=12,
)
ids = st.text(st.characters(codec="utf-8"), max_size=80) | st.from_regex(r"\A(conv_|turn_)?[a-zA-Z0-9:*_./@-]{0,70}\s?\Z")
chat_fields = {
    "message": st.just("Hello") | anything,
    "client_id": st.just("ann") | ids | anything,
}
more_fields = {
    "personality": st.just("robbie") | ids | anything,
    "conversation_id": st.just(CONVERSATION) | ids | anything,
    "message_id": ids | anything,
    "stream": st.booleans() | anything,
    "options": st.dictionaries(
        st.sampled_from(["temperature", "top_p", "max_tokens", "seed", "words", "words_per_second", "divergent", "other"]),
        st.integers(-1, 5) | anything,
        max_size=4,
    )
    | anything,
    "type": st.sampled_from(["chat", "resume", "stop", "ping", "pong"]) | anything,
    "turn_id": st.just(TURN) | ids | anything,
    "after": st.integers(-2, 5) | anything,
    "title": anything,
}
objects = st.fixed_dictionaries(chat_fields, optional=more_fields)


@pytest.fixture
async def url(stack: Stack) -> AsyncIterator[str]:
    async with stack.serving() as base:
        yield base


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture):  # type: ignore[no-untyped-def]
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert {"code", "message", "retryable"} <= set(error)
        assert "Traceback" not in error["message"]


@few
@given(body=objects | anything, path=st.sampled_from(["/api/chat", "/api/sessions", "/api/conversations"]))
async def test_any_body_is_answered_or_refused(url: str, body: object, path: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        check(await client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"}))


@few
@given(raw=st.binary(max_size=200))
async def test_any_bytes_are_answered_or_refused(url: str, raw: bytes) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        check(await client.post("/api/chat", content=raw, headers={"Content-Type": "application/json"}))


@few
@given(
    route=st.sampled_from(
        [
            "GET /api/turns/{}",
            "DELETE /api/turns/{}",
            "GET /api/turns/{}/events",
            "GET /api/conversations/{}/history",
            "DELETE /api/conversations/{}",
        ]
    ),
    name=ids,
    client_id=ids,
)
async def test_any_id_in_a_path_and_a_query_is_refused_with_4xx(url: str, route: str, name: str, client_id: str) -> None:
    method, path = route.split(" ")
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        answer = await client.request(method, path.format(quote(name, safe="")), params={"client_id": client_id})
    check(answer)
    assert 300 <= answer.status_code < 500


@few
@given(frames=st.lists(objects | anything, min_size=1, max_size=5))
async def test_any_frames_are_answered_and_the_connection_lives(url: str, frames: list[object]) -> None:
    async with Device(url, "ann") as device:
        for frame in frames:
            await device.socket.send(json.dumps(frame))
        for frame in await device.alive():
            assert frame["type"] in ("error", "accepted", "started", "piece", "done", "failed", "stopped", "pong", "rewind")
            if frame["type"] == "error":
                assert frame["error"]["code"] != "internal"


@few
@given(frame=st.text(max_size=100) | st.binary(max_size=100))
async def test_any_text_or_bytes_get_an_error_frame(url: str, frame: str | bytes) -> None:
    async with Device(url, "ann") as device:
        await device.socket.send(frame)
        assert (await device.next())["type"] == "error"
        assert await device.alive() == []
