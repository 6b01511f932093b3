"""REST: a message answered whole, stopped, sent again, and left alone."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.chat.events import Receipt
from serve_app.chat.service import Ask, ServiceConfig
from tests.support.clients import all_sse, check_whole, everything, paced, read_sse
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.serving() as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http


async def chat(client: httpx.AsyncClient, message: str = "Hello Robbie!", *, key: str = "", **more: object) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/api/chat", json={"client_id": "ann", "message": message, **more}, headers=headers)


async def open_turn(stack: Stack, client_id: str = "ann") -> str:
    """Wait until the client has an open turn that has said something; return it."""

    async def speaking() -> str:
        for turn in await stack.service.recent_turns(client_id):
            if turn.is_open and (await stack.service.turn(turn.turn_id)).seq > 0:
                return turn.turn_id
        return ""

    return await until(speaking, 10)


async def ended(client: httpx.AsyncClient, turn_id: str) -> dict[str, object]:
    """Wait until the turn has ended; return it."""

    async def over() -> dict[str, object]:
        turn = (await client.get(f"/api/turns/{turn_id}")).json()
        return dict(turn) if turn["state"] != "open" else {}

    return await until(over, 15)


async def test_a_whole_answer_has_the_fields_of_the_seed_and_a_receipt_of_the_stored_text(client: httpx.AsyncClient) -> None:
    answer = await chat(client, personality="kristina")
    assert answer.status_code == 200
    body = answer.json()
    assert {"response", "conversation_id", "node", "personality", "timestamp"} <= set(body)
    assert body["personality"] == "kristina"
    assert body["node"] == "aurora"
    assert body["status"] == "done"
    page = (await client.get(f"/api/conversations/{body['conversation_id']}/history?limit=10")).json()
    assert page["count"] == len(page["messages"]) == 2
    assert page["messages"][0]["content"] == "Hello Robbie!"
    assert page["messages"][1]["content"] == body["response"]
    assert body["receipt"]["sha256"] == Receipt.of([body["response"]]).sha256


async def test_a_turn_can_be_looked_at_while_it_is_open_and_after_its_end(stack: Stack, client: httpx.AsyncClient) -> None:
    asking = asyncio.create_task(chat(client, options=paced(40, 60)))
    turn_id = await open_turn(stack)
    turn = (await client.get(f"/api/turns/{turn_id}")).json()
    assert (turn["state"], turn["client_id"], turn["personality"], turn["attempt"]) == ("open", "ann", "robbie", 1)
    assert "end" not in turn
    whole = (await asking).json()
    assert whole["response"].startswith(turn["content"])
    turn = (await client.get(f"/api/turns/{turn_id}")).json()
    assert (turn["state"], turn["content"]) == ("done", whole["response"])
    assert turn["end"]["receipt"] == whole["receipt"]
    assert turn["end"]["content"] == whole["response"]


async def test_a_whole_answer_goes_on_when_its_client_leaves(stack: Stack, client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/api/chat", json={"client_id": "ann", "message": "x", "options": paced(60, 60)}, timeout=0.4)
    turn_id = await open_turn(stack)
    turn = await ended(client, turn_id)
    assert turn["state"] == "done"
    assert len(str(turn["content"]).split()) == 60


async def test_a_streamed_answer_goes_on_when_its_client_leaves(client: httpx.AsyncClient) -> None:
    body = {"client_id": "ann", "message": "x", "stream": True, "options": paced(60, 60)}
    async with client.stream("POST", "/api/chat", json=body) as response:
        async for event in read_sse(response):
            if event.id == 3:
                break
    turn = await ended(client, event.data["turn_id"])
    assert turn["state"] == "done"
    assert len(str(turn["content"]).split()) == 60


async def test_a_stopped_turn_keeps_what_was_said_and_its_waiting_caller_gets_it(stack: Stack, client: httpx.AsyncClient) -> None:
    asking = asyncio.create_task(chat(client, options=paced(500, 100)))
    turn_id = await open_turn(stack)
    stopped = await client.delete(f"/api/turns/{turn_id}", params={"client_id": "ann"})
    assert stopped.status_code == 200
    assert stopped.json()["state"] == "stopped"
    answer = (await asking).json()
    assert answer["status"] == "stopped"
    assert answer["response"] == stopped.json()["content"] != ""
    assert len(answer["response"].split()) < 500
    page = (await client.get(f"/api/conversations/{answer['conversation_id']}/history")).json()
    assert page["messages"][1]["content"] == answer["response"]
    assert page["messages"][1]["status"] == "stopped"


async def test_stopping_a_turn_that_has_ended_changes_nothing(client: httpx.AsyncClient, redis_server: RedisProcess) -> None:
    turn_id = (await chat(client)).json()["turn_id"]
    before, turn = everything(redis_server), (await client.get(f"/api/turns/{turn_id}")).json()
    assert (await client.delete(f"/api/turns/{turn_id}")).json() == turn
    assert turn["state"] == "done"
    assert everything(redis_server) == before


async def test_after_a_stop_the_conversation_can_go_on_at_once(stack: Stack, client: httpx.AsyncClient) -> None:
    asking = asyncio.create_task(chat(client, options=paced(500, 100)))
    await client.delete(f"/api/turns/{await open_turn(stack)}")
    first, second = (await asking).json(), await chat(client)
    assert second.status_code == 200
    assert second.json()["conversation_id"] == first["conversation_id"]


async def test_the_same_key_sent_again_afterwards_is_answered_with_the_first_turn(client: httpx.AsyncClient) -> None:
    first, again = await chat(client, key="k-1"), await chat(client, key="k-1")
    assert first.json() == again.json()
    page = (await client.get(f"/api/conversations/{first.json()['conversation_id']}/history")).json()
    assert page["total"] == 2


async def test_the_same_key_sent_again_meanwhile_at_another_node_is_attached_to_the_first_turn(
    stack: Stack, client: httpx.AsyncClient, redis_server: RedisProcess
) -> None:
    async with Stack(redis_server.url, node="star") as star, star.serving() as there:
        first = asyncio.create_task(chat(client, key="k-1", options=paced(50, 60)))
        await open_turn(stack)
        async with httpx.AsyncClient(base_url=there, timeout=20) as other:
            streamed = {"client_id": "ann", "message": "Hello Robbie!", "options": paced(50, 60), "stream": True}
            again = await all_sse(other, "POST", "/api/chat", json=streamed, headers={"Idempotency-Key": "k-1"})
    whole = (await first).json()
    assert again[0].data["turn_id"] == whole["turn_id"]
    assert check_whole([e.data for e in again]) == whole["response"]


async def test_twenty_requests_with_one_key_at_once_are_one_turn(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(chat(client, key="k-1", options=paced(10, 50)) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    page = (await client.get(f"/api/conversations/{answers[0].json()['conversation_id']}/history")).json()
    assert page["total"] == 2


@pytest.mark.parametrize("change", [{"message": "Another"}, {"personality": "kristina"}, {"options": {"words": 3}}])
async def test_the_same_key_with_another_body_is_refused_and_nothing_is_stored(
    client: httpx.AsyncClient, redis_server: RedisProcess, change: dict[str, object]
) -> None:
    await chat(client, key="k-1")
    before = everything(redis_server)
    answer = await client.post(
        "/api/chat", json={"client_id": "ann", "message": "Hello Robbie!", **change}, headers={"Idempotency-Key": "k-1"}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "idempotency_mismatch"
    assert everything(redis_server) == before


async def test_a_key_belongs_to_its_client(client: httpx.AsyncClient) -> None:
    one, two = await chat(client, key="k-1"), await chat(client, key="k-1", client_id="bob")
    assert one.json()["turn_id"] != two.json()["turn_id"]


async def test_a_refused_message_claims_no_key(client: httpx.AsyncClient) -> None:
    assert (await chat(client, key="k-1", personality="nobody")).status_code == 404
    assert (await chat(client, key="k-1", conversation_id="conv_ann_1")).status_code == 404
    assert (await chat(client, key="k-1")).status_code == 200


async def test_a_second_message_meanwhile_is_a_conflict_that_names_the_open_turn(stack: Stack, client: httpx.AsyncClient) -> None:
    asking = asyncio.create_task(chat(client, options=paced(500, 100)))
    turn_id = await open_turn(stack)
    answer = await chat(client, "And this?")
    assert answer.status_code == 409
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "turn_in_progress"
    assert answer.json()["error"]["retryable"] is True
    assert answer.json()["error"]["turn_id"] == turn_id
    elsewhere = await chat(client, "And with somebody else?", personality="allanbot")
    assert elsewhere.status_code == 200
    await client.delete(f"/api/turns/{turn_id}")
    await asking


async def test_more_open_turns_than_allowed_are_refused_with_429(redis_server: RedisProcess) -> None:
    config = ServiceConfig(max_open_turns=1)
    async with Stack(redis_server.url, service=config) as full, full.serving() as url, httpx.AsyncClient(base_url=url) as client:
        turn_id = (await full.service.begin(Ask(client_id="bob", message="drill-hang"))).turn_id
        answer = await chat(client)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "overloaded"
        assert answer.headers["retry-after"] == "1"
        await client.delete(f"/api/turns/{turn_id}")
        assert (await chat(client)).status_code == 200


async def test_somebody_elses_turn_looks_like_none(client: httpx.AsyncClient) -> None:
    turn_id = (await chat(client)).json()["turn_id"]
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        answer = await client.request(method, f"/api/turns/{turn_id}{path}", params={"client_id": "bob"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "no_turn"
        assert (await client.request(method, f"/api/turns/{turn_id}{path}", params={"client_id": "ann"})).status_code == 200


async def test_the_root_names_the_engine_and_says_that_it_is_no_language_model(client: httpx.AsyncClient) -> None:
    body = (await client.get("/")).json()
    assert (body["status"], body["node"]) == ("running", "aurora")
    assert body["engines"][0]["language_model"] is False
    assert "not a language model" in body["engine"]


async def test_the_personalities_are_listed_with_the_default(client: httpx.AsyncClient) -> None:
    body = (await client.get("/api/personalities")).json()
    assert {p["name"] for p in body["personalities"]} == {"robbie", "allanbot", "kristina"}
    assert body["default"] == "robbie"
    assert "system" not in body["personalities"][0]


async def test_health_says_that_redis_is_away_and_a_message_meanwhile_is_503_and_retryable(own_redis: RedisProcess) -> None:
    async with (
        Stack(own_redis.url, patience_s=0.2) as stack,
        stack.serving() as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        assert (await client.get("/health")).json()["status"] == "healthy"
        own_redis.kill()
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"], health.json()["redis"]) == (200, "degraded", "away")
        answer = await chat(client, key="k-1")
        assert answer.status_code == 503
        assert answer.json()["error"] == {**answer.json()["error"], "code": "store_unavailable", "retryable": True}
        own_redis.start()
        assert (await chat(client, key="k-1")).status_code == 200


async def test_an_unknown_route_and_an_unknown_method_have_the_one_error_shape(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await client.put("/api/chat")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
