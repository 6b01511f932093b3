"""Every way in which an engine can fail ends its turn once, as `failed` with a code; and a bug is no text for clients."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import httpx
import pytest

from serve_app.chat.conversations import Session
from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, Prefix, Prompt
from serve_app.chat.errors import EngineError, EngineRejected, EngineUnavailable
from serve_app.chat.generate import GeneratorConfig
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.service import ChatService, ServiceConfig
from serve_app.chat.turns import Begun, NewTurn, Snapshot
from serve_app.state.sessions import RedisSessions
from serve_app.state.turns import RedisTurns
from tests.support.clients import Device, Frame, all_sse, check_whole
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities

pytestmark = pytest.mark.integration
SECRET = "sesame://user:password@host"
QUICK = GeneratorConfig(first_piece_timeout_s=0.4, piece_timeout_s=0.4, beat_s=0.1)
Script = Callable[[], AsyncGenerator[EnginePiece, None]]


class Playing(Engine):
    """Plays one script per answer, the last one for ever; keeps the prompts and counts what it was asked to close."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.prompts: list[Prompt] = []
        self.closed = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(kind="playing", model="playing-1", language_model=False)

    async def start(self) -> None: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        self.prompts.append(prompt)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        try:
            async for piece in script():
                yield piece
        finally:
            self.closed += 1


def saying(*texts: str, then: BaseException | str = "") -> Script:
    """Return a script: these texts, and then an exception, `hang`, or the end."""

    async def script() -> AsyncGenerator[EnginePiece, None]:
        for text in texts:
            yield EnginePiece(text)
        if isinstance(then, BaseException):
            raise then
        if then == "hang":
            await asyncio.Event().wait()

    return script


FAILURES = {
    "EngineError at once": (saying(then=EngineError()), 502, "engine_error", ""),
    "EngineError on the way": (saying("one ", "two", then=EngineError()), 502, "engine_error", "one two"),
    "EngineUnavailable": (saying(then=EngineUnavailable()), 503, "engine_unavailable", ""),
    "EngineRejected": (saying(then=EngineRejected()), 422, "engine_rejected", ""),
    "a bug at once": (saying(then=ValueError(SECRET)), 502, "engine_error", ""),
    "a bug on the way": (saying("one ", then=KeyError(SECRET)), 502, "engine_error", "one "),
    "hangs at once": (saying(then="hang"), 504, "engine_timeout", ""),
    "hangs on the way": (saying("one ", "two", then="hang"), 504, "engine_timeout", "one two"),
    "nothing": (saying(), 502, "empty_reply", ""),
    "nothing but empty pieces": (saying("", "", ""), 502, "empty_reply", ""),
}


@pytest.fixture(params=FAILURES.values(), ids=FAILURES.keys())
async def failing(
    request: pytest.FixtureRequest, redis_server: RedisProcess
) -> AsyncIterator[tuple[httpx.AsyncClient, Playing, int, str, str]]:
    """A node whose engine fails in one of all ways, and is well from the second answer on."""
    script, status, code, said = request.param
    engine = Playing(script, saying("All is well."))
    async with (
        Stack(redis_server.url, engine=engine, run=QUICK) as stack,
        stack.serving() as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield client, engine, status, code, said


Failing = tuple[httpx.AsyncClient, Playing, int, str, str]
BODY = {"client_id": "ann", "message": "Hello"}


async def test_a_whole_answer_fails_with_the_status_and_code_of_the_failure(failing: Failing) -> None:
    client, engine, status, code, _ = failing
    answer = await client.post("/api/chat", json=BODY)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["retryable"]) == (status, code, code != "engine_rejected")
    assert SECRET not in answer.text
    assert ("retry-after" in answer.headers) is error["retryable"]
    turn = (await client.get(f"/api/turns/{error['turn_id']}")).json()
    assert (turn["state"], turn["end"]["code"], turn["attempt"]) == ("failed", code, 1)
    assert engine.closed == 1


async def test_a_streamed_answer_ends_once_with_failed_and_a_receipt_of_what_was_said(failing: Failing) -> None:
    client, _, _, code, said = failing
    frames = [e.data for e in await all_sse(client, "POST", "/api/chat", json={**BODY, "stream": True})]
    assert check_whole(frames) == said
    end = frames[-1]
    assert (end["type"], end["code"], end["content"]) == ("failed", code, said)
    assert SECRET not in str(frames)
    again = [e.data for e in await all_sse(client, "GET", f"/api/turns/{end['turn_id']}/events")]
    assert again[-1] == end


async def test_a_websocket_gets_one_failed_frame_and_lives(failing: Failing) -> None:
    client, _, _, code, said = failing
    async with Device(str(client.base_url), "ann") as device:
        await device.chat("Hello")
        end = await device.next()
        assert (end["type"], end["code"], end["content"]) == ("failed", code, said)
        assert await device.alive() == []
        await device.chat("Hello")
        assert (await device.next())["content"] == "All is well."


async def test_what_was_said_is_kept_as_failed_and_does_not_enter_the_next_prompt(failing: Failing) -> None:
    client, engine, _, _, said = failing
    await client.post("/api/chat", json=BODY)
    answer = (await client.post("/api/chat", json={**BODY, "message": "And now?"})).json()
    assert answer["response"] == "All is well."
    page = (await client.get(f"/api/conversations/{answer['conversation_id']}/history")).json()
    kept = [(m["role"], m["content"], m.get("status")) for m in page["messages"]]
    failed = [("assistant", said, "failed")] if said else []
    assert kept == [("user", "Hello", None), *failed, ("user", "And now?", None), ("assistant", "All is well.", None)]
    assert [(m.role, m.content) for m in engine.prompts[1].messages] == [(Role.USER, "Hello"), (Role.USER, "And now?")]


async def test_a_stopped_reply_enters_the_next_prompt(redis_server: RedisProcess) -> None:
    engine = Playing(saying("Once upon", then="hang"), saying("All is well."))
    async with Stack(redis_server.url, engine=engine) as stack, stack.serving() as url, Device(url, "ann") as device:
        await device.chat("Hello", stream=True)
        await device.send(type="stop", turn_id=(await device.until("piece"))[-1]["turn_id"])
        assert (await device.until("stopped"))[-1]["content"] == "Once upon"
        await device.chat("Go on")
        await device.until("done")
    told = [(m.role, m.content) for m in engine.prompts[1].messages]
    assert told == [(Role.USER, "Hello"), (Role.ASSISTANT, "Once upon"), (Role.USER, "Go on")]


async def test_a_slow_engine_that_says_something_in_time_is_no_failure(redis_server: RedisProcess) -> None:
    async def slow() -> AsyncGenerator[EnginePiece, None]:
        for n in range(5):
            await asyncio.sleep(0.2)
            yield EnginePiece(f"{n} ")

    async with (
        Stack(redis_server.url, engine=Playing(slow), run=QUICK) as stack,
        stack.serving() as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        assert (await client.post("/api/chat", json=BODY)).json()["response"] == "0 1 2 3 4 "


async def test_one_failing_turn_does_not_touch_its_neighbours(redis_server: RedisProcess) -> None:
    async def well() -> AsyncGenerator[EnginePiece, None]:
        for n in range(8):
            await asyncio.sleep(0.1)
            yield EnginePiece(f"{n} ")

    engine = Playing(saying("x", then="hang"), saying(then=ValueError()), well)
    async with (
        Stack(redis_server.url, engine=engine, run=QUICK) as stack,
        stack.serving() as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        asked = [client.post("/api/chat", json={"client_id": f"c{n}", "message": "x"}) for n in range(6)]
        codes = sorted(answer.status_code for answer in await asyncio.gather(*asked))
    assert codes == [200, 200, 200, 200, 502, 504]


class BrokenTurns(RedisTurns):
    """A store of turns with a bug."""

    async def begin(self, new: NewTurn) -> Begun:
        raise RuntimeError(SECRET)

    async def read(self, turn_id: str, *, after: int = 0) -> Snapshot:
        raise TypeError(SECRET)


class BrokenSessions(RedisSessions):
    """A store of sessions with a bug, for one client."""

    async def touch(self, *, client_id: str, node: str, timestamp: str, connected: bool) -> tuple[Session, bool]:
        if client_id == "unlucky":
            raise RuntimeError(SECRET)
        return await super().touch(client_id=client_id, node=node, timestamp=timestamp, connected=connected)


@pytest.fixture
async def broken(stack: Stack) -> AsyncIterator[str]:
    """The address of a node whose stores have bugs."""
    stack.service = ChatService(
        turns=BrokenTurns(stack.scripts),
        conversations=stack.conversations,
        sessions=BrokenSessions(stack.scripts),
        bus=stack.bus,
        dispatcher=stack,
        personalities=personalities(),
        node="aurora",
        config=ServiceConfig(),
    )
    async with stack.serving() as url:
        yield url


def check_internal(error: Frame) -> None:
    assert error == {
        "code": "internal",
        "message": "Something went wrong on our side. It was logged; try again.",
        "retryable": True,
    }


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/chat", BODY),
        ("POST", "/api/chat", {**BODY, "stream": True}),
        ("GET", f"/api/turns/turn_{'a' * 26}", None),
        ("GET", f"/api/turns/turn_{'a' * 26}/events", None),
        ("POST", "/api/sessions", {"client_id": "unlucky"}),
    ],
)
async def test_a_bug_reaches_a_rest_client_as_internal_and_the_log_with_its_traceback(
    broken: str, caplog: pytest.LogCaptureFixture, method: str, path: str, body: Frame | None
) -> None:
    async with httpx.AsyncClient(base_url=broken) as client:
        answer = await client.request(method, path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (500, "1")
        check_internal(answer.json()["error"])
        assert SECRET not in answer.text
    assert any(r.levelno == logging.ERROR and r.exc_info and SECRET in str(r.exc_info[1]) for r in caplog.records)


async def test_a_bug_in_a_frame_reaches_a_websocket_client_as_internal_and_the_connection_lives(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Device(broken, "ann") as device:
        await device.chat("Hello", message_id="m-1")
        frame = await device.next()
        assert (frame["type"], frame["message_id"]) == ("error", "m-1")
        check_internal(frame["error"])
        await device.send(type="resume", turn_id="turn_" + "a" * 26)
        check_internal((await device.next())["error"])
        assert await device.alive() == []
    assert sum(r.levelno == logging.ERROR and SECRET in str((r.exc_info or ("", ""))[1]) for r in caplog.records) == 2


async def test_a_bug_while_connecting_closes_with_internal_and_an_invitation_to_come_back(broken: str) -> None:
    async with Device(broken, "unlucky") as device:
        check_internal((await device.next())["error"])
        await device.socket.wait_closed()
        assert device.socket.close_code == 4000
        assert SECRET not in (device.socket.close_reason or "")
