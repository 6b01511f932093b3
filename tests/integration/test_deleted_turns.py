"""What a deleted conversation leaves of its turns is told as what it is, to whoever still asks for them (law 12)."""

import asyncio
import contextlib

import httpx
import pytest

from serve_app.chat.events import is_end
from serve_app.client import AuroraSocket
from tests.support.clients import Device, all_sse, paced
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration
HELLO = {"client_id": "ann", "message": "Hello", "options": {"words": 5}}


async def deleted(http: httpx.AsyncClient) -> str:
    """Ask, delete the conversation, and return the turn."""
    answer = (await http.post("/api/chat", json=HELLO)).json()
    path = f"/api/conversations/{answer['conversation_id']}"
    assert (await http.delete(path, params={"client_id": "ann"})).status_code == 204
    return str(answer["turn_id"])


async def test_what_is_left_of_it_is_its_end_without_text(stack: Stack) -> None:
    async with stack.serving() as base, httpx.AsyncClient(base_url=base, timeout=20) as http, Device(base, "ann") as device:
        turn_id = await deleted(http)
        await device.until("done")  # live
        turn = (await http.get(f"/api/turns/{turn_id}")).json()
        assert (turn["state"], turn["content"]) == ("done", "")
        *_, streamed = await all_sse(http, "GET", f"/api/turns/{turn_id}/events")
        await device.send(type="resume", turn_id=turn_id)
        for end in (streamed.data, await device.next()):
            assert (end["type"], end["content"], end["recovered"], end["receipt"]["pieces"] > 0) == ("done", "", False, True)


async def test_a_turn_that_nobody_knows_is_refused_by_name_and_the_connection_lives(stack: Stack) -> None:
    unknown = "turn_" + "a" * 26
    async with stack.serving() as base, httpx.AsyncClient(base_url=base) as http, Device(base, "ann") as device:
        await device.send(type="resume", turn_id=unknown, after=1)
        for refused in ((await device.next())["error"], (await http.get(f"/api/turns/{unknown}")).json()["error"]):
            assert (refused["code"], refused["turn_id"]) == ("no_turn", unknown)
        await device.chat("And now?", options={"words": 3})
        assert (await device.until("done"))[-1]["type"] == "done"


async def test_the_other_turns_of_a_device_go_on_when_one_is_deleted_while_it_is_away(stack: Stack) -> None:
    async with (
        stack.serving() as base,
        TcpProxy(int(base.rpartition(":")[2])) as proxy,
        AuroraSocket([f"http://127.0.0.1:{proxy.port}"], "ann", explore=False) as device,
    ):
        heard = []

        async def hear() -> None:
            async for event in device.events():
                heard.append(event)

        hearing = asyncio.create_task(hear())
        lost = await device.ask("A", personality="robbie", options=paced(400, 40))
        kept = await device.ask("B", personality="kristina", options=paced(60, 40))
        await until(lambda: {event.turn_id for event in heard if event.type == "piece"} == {lost, kept})
        proxy.stall()
        proxy.cut()
        seen = max(event.seq for event in heard if event.type == "piece" and event.turn_id == lost)

        async def more_was_said() -> bool:
            return (await stack.service.turn(lost)).seq > seen

        await until(more_was_said)
        conversation = (await stack.service.turn(lost)).conversation_id
        await stack.service.delete_conversation(conversation, client_id="ann")
        proxy.flow()
        await until(lambda: {event.turn_id for event in heard if is_end(event)} == {lost, kept} or hearing.done(), 20)
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hearing
    assert [(event.type, event.code) for event in heard if is_end(event) and event.turn_id == lost] == [("failed", "no_turn")]
    assert [event.type for event in heard if is_end(event) and event.turn_id == kept] == ["done"]
