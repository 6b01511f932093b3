"""What a deleted conversation leaves of its turns is told as what it is, to whoever still asks for them (law 12)."""

import asyncio
import contextlib

import httpx
import pytest

from serve_app.chat.events import is_end
from serve_app.client import AuroraSocket
from tests.support.clients import Device, paced
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration
HELLO = {"client_id": "ann", "message": "Hello", "options": {"words": 5}}
KEY = {"Idempotency-Key": "k1"}


async def deleted(http: httpx.AsyncClient) -> str:
    """Ask, delete the conversation, and return the turn."""
    answer = (await http.post("/api/chat", json=HELLO, headers=KEY)).json()
    path = f"/api/conversations/{answer['conversation_id']}"
    assert (await http.delete(path, params={"client_id": "ann"})).status_code == 204
    return str(answer["turn_id"])


async def test_every_way_of_asking_for_it_over_http_is_answered_with_a_404_that_names_it(stack: Stack) -> None:
    async with stack.serving() as base, httpx.AsyncClient(base_url=base, timeout=20) as http:
        turn_id = await deleted(http)
        for response in (
            await http.get(f"/api/turns/{turn_id}"),
            await http.get(f"/api/turns/{turn_id}/events"),
            await http.post("/api/chat", json=HELLO, headers=KEY),
            await http.post("/api/chat", json={**HELLO, "stream": True}, headers=KEY),
        ):
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["turn_id"]) == (404, "no_turn", turn_id), response.request.url


async def test_a_resume_of_it_is_refused_by_name_and_the_connection_lives(stack: Stack) -> None:
    async with stack.serving() as base, httpx.AsyncClient(base_url=base, timeout=20) as http:
        turn_id = await deleted(http)
        async with Device(base, "ann") as device:
            for unknown in (turn_id, "turn_" + "a" * 26):
                await device.send(type="resume", turn_id=unknown, after=1)
                refused = await device.next()
                assert (refused["type"], refused["error"]["code"], refused["error"]["turn_id"]) == ("error", "no_turn", unknown)
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
        conversation = (await stack.service.turn(lost)).conversation_id
        await stack.service.delete_conversation(conversation, client_id="ann")
        proxy.flow()
        await until(lambda: {event.turn_id for event in heard if is_end(event)} == {lost, kept} or hearing.done(), 20)
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hearing
    assert [(event.type, event.code) for event in heard if is_end(event) and event.turn_id == lost] == [("failed", "no_turn")]
    assert [event.type for event in heard if is_end(event) and event.turn_id == kept] == ["done"]
