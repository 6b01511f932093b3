"""Conversations and sessions over REST: which one a message goes to, lists, pages, deletion."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.clients import Frame, everything, paced
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack
from tests.support.turn_tools import Published
from tests.support.waiting import until

pytestmark = pytest.mark.integration


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.serving() as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http


async def chat(client: httpx.AsyncClient, message: str = "Hello", **more: object) -> Frame:
    answer = await client.post("/api/chat", json={"client_id": "ann", "message": message, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def create(client: httpx.AsyncClient, client_id: str = "ann", **more: object) -> Frame:
    answer = await client.post("/api/conversations", json={"client_id": client_id, **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def listed(client: httpx.AsyncClient, client_id: str = "ann", **params: int) -> Frame:
    return dict((await client.get("/api/conversations", params={"client_id": client_id, **params})).json())


async def test_without_an_id_a_message_goes_on_with_the_current_conversation_of_that_personality(
    client: httpx.AsyncClient,
) -> None:
    robbie, kristina = await chat(client), await chat(client, personality="kristina")
    assert robbie["conversation_id"] != kristina["conversation_id"]
    assert (await chat(client))["conversation_id"] == robbie["conversation_id"]
    assert (await chat(client, personality="robbie"))["conversation_id"] == robbie["conversation_id"]
    assert (await chat(client, personality="kristina"))["conversation_id"] == kristina["conversation_id"]
    other = await client.post("/api/chat", json={"client_id": "bob", "message": "Hello"})
    assert other.json()["conversation_id"] not in (robbie["conversation_id"], kristina["conversation_id"])


async def test_when_the_session_is_over_a_message_without_an_id_starts_another_conversation(
    client: httpx.AsyncClient, redis_server: RedisProcess
) -> None:
    first = await chat(client)
    with redis_server.client() as redis:
        assert 3_590 < redis.ttl("aurora:session:ann") <= 3_600
        redis.delete("aurora:session:ann")
    assert (await chat(client))["conversation_id"] != first["conversation_id"]
    assert (await chat(client, conversation_id=first["conversation_id"]))["conversation_id"] == first["conversation_id"]


async def test_an_explicit_conversation_is_gone_on_with_by_its_own_personality_and_becomes_current(
    client: httpx.AsyncClient,
) -> None:
    old = (await create(client, personality="allanbot"))["conversation_id"]
    await create(client, personality="allanbot")
    answer = await chat(client, conversation_id=old)
    assert (answer["conversation_id"], answer["personality"]) == (old, "allanbot")
    assert (await chat(client, personality="allanbot"))["conversation_id"] == old


async def test_a_reply_remembers_what_the_conversation_was_told(client: httpx.AsyncClient) -> None:
    await chat(client, "My name is Joanna.")
    assert "Joanna" in (await chat(client, "What is my name?"))["response"]


async def test_ids_taken_in_the_same_second_get_a_number(stack: Stack) -> None:
    made = [
        await stack.conversations.create(
            client_id="ann",
            personality="robbie",
            title="",
            node="aurora",
            timestamp="2025-10-06T12:00:00Z",
            unix=1696608000,
            marker=m,
        )
        for m in ("a", "b", "c")
    ]
    base = "conv_ann_1696608000"
    assert [c.conversation_id for c in made] == [base, f"{base}-2", f"{base}-3"]


async def test_a_numbered_conversation_is_usable_like_any_other(client: httpx.AsyncClient) -> None:
    made: list[str] = []

    async def numbered() -> bool:
        made.append((await create(client))["conversation_id"])
        return "-" in made[-1]

    await until(numbered)
    assert len(set(made)) == len(made)
    assert (await chat(client))["conversation_id"] == made[-1]
    assert (await client.get(f"/api/conversations/{made[-1]}/history")).json()["count"] == 2


async def test_a_new_conversation_becomes_the_current_one(client: httpx.AsyncClient) -> None:
    before = await chat(client)
    made = await create(client, title="Plans")
    assert made == {**made, "client_id": "ann", "personality": "robbie", "title": "Plans", "messages": 0}
    assert (await chat(client))["conversation_id"] == made["conversation_id"] != before["conversation_id"]


async def test_a_title_given_to_a_conversation_survives_its_first_message(client: httpx.AsyncClient) -> None:
    await create(client, title="Plans")
    await chat(client, "Good morning")
    await chat(client, "Something else", personality="kristina")
    titles = {c["personality"]: c["title"] for c in (await listed(client))["conversations"]}
    assert titles == {"robbie": "Plans", "kristina": "Something else"}


async def test_the_list_is_newest_first_and_paged(client: httpx.AsyncClient) -> None:
    made = [(await create(client))["conversation_id"] for _ in range(5)]
    await create(client, client_id="bob")
    await chat(client, conversation_id=made[1])
    expected = [made[1], made[4], made[3], made[2], made[0]]
    page = await listed(client)
    assert [c["conversation_id"] for c in page["conversations"]] == expected
    assert (page["count"], page["total"]) == (5, 5)
    assert page["conversations"][0]["messages"] == 2
    paged = [await listed(client, limit=2, offset=at) for at in (0, 2, 4, 6)]
    assert [c["conversation_id"] for p in paged for c in p["conversations"]] == expected
    assert [(p["count"], p["total"]) for p in paged] == [(2, 5), (2, 5), (1, 5), (0, 5)]


async def test_a_history_is_read_backwards_page_by_page_without_hole_or_repeat(client: httpx.AsyncClient) -> None:
    for n in range(5):
        conversation = (await chat(client, f"Message {n}"))["conversation_id"]
    whole = (await client.get(f"/api/conversations/{conversation}/history")).json()
    assert whole["total"] == whole["count"] == 10
    assert "before" not in whole
    read: list[Frame] = []
    params = {"limit": 3}
    while True:
        page = (await client.get(f"/api/conversations/{conversation}/history", params=params)).json()
        assert page["total"] == 10
        read = page["messages"] + read
        if "before" not in page:
            break
        params["before"] = page["before"]
    assert read == whole["messages"]
    assert [m["seq"] for m in read] == list(range(1, 11))


async def test_a_deleted_conversation_is_gone_and_the_next_message_starts_another(
    client: httpx.AsyncClient, redis_server: RedisProcess
) -> None:
    conversation = (await chat(client, "The word is periwinkle"))["conversation_id"]
    for _ in range(2):  # again is as good as once
        assert (await client.delete(f"/api/conversations/{conversation}", params={"client_id": "ann"})).status_code == 204
    answer = await client.get(f"/api/conversations/{conversation}/history")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_conversation")
    assert (await listed(client))["total"] == 0
    assert b"periwinkle" not in b"".join(everything(redis_server).values())
    assert (await chat(client))["conversation_id"] != conversation
    answer = await client.post("/api/chat", json={"client_id": "ann", "message": "x", "conversation_id": conversation})
    assert answer.status_code == 404


async def test_deleting_a_conversation_that_is_being_answered_ends_the_turn_and_nothing_comes_back(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    asking = asyncio.create_task(chat(client, options=paced(500, 100)))

    async def speaking() -> str:
        turns = await stack.service.recent_turns("ann")
        return turns[0].turn_id if turns and (await stack.service.turn(turns[0].turn_id)).seq else ""

    turn_id = await until(speaking)
    conversation = (await stack.service.turn(turn_id)).conversation_id
    assert (await client.delete(f"/api/conversations/{conversation}", params={"client_id": "ann"})).status_code == 204
    assert (await asking)["status"] == "stopped"
    assert (await client.get(f"/api/conversations/{conversation}/history")).status_code == 404
    turn = (await client.get(f"/api/turns/{turn_id}")).json()
    assert (turn["state"], turn["content"]) == ("stopped", "")


async def test_somebody_elses_conversation_looks_like_none_and_stays(
    client: httpx.AsyncClient, redis_server: RedisProcess
) -> None:
    conversation = (await chat(client))["conversation_id"]
    before = everything(redis_server)
    for answer in (
        await client.get(f"/api/conversations/{conversation}/history", params={"client_id": "bob"}),
        await client.delete(f"/api/conversations/{conversation}", params={"client_id": "bob"}),
        await client.post("/api/chat", json={"client_id": "bob", "message": "x", "conversation_id": conversation}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_conversation")
    assert everything(redis_server) == before


async def test_a_session_is_created_once_announced_once_and_listed_as_the_seed_lists_it(
    client: httpx.AsyncClient, redis_server: RedisProcess
) -> None:
    with Published(redis_server) as published:
        made = (await client.post("/api/sessions", json={"client_id": "ann"})).json()
        again = (await client.post("/api/sessions", json={"client_id": "ann"})).json()
        told = [data for channel, data in published.drain() if channel == "aurora:user:session"]
    assert again["created_at"] == made["created_at"]
    assert [(t["type"], t["user_id"], t["node"]) for t in told] == [("session_created", "ann", "aurora")]
    body = (await client.get("/api/sessions")).json()
    assert (body["total"], body["node"]) == (1, "aurora")
    assert {"client_id", "node", "connected_at", "status"} <= set(body["sessions"][0])
    assert (body["sessions"][0]["client_id"], body["sessions"][0]["status"]) == ("ann", "active")


async def test_sessions_are_paged_latest_activity_first_and_shared_by_the_nodes(stack: Stack, redis_server: RedisProcess) -> None:
    async with (
        Stack(redis_server.url, node="star") as star,
        stack.serving() as here,
        star.serving() as there,
        httpx.AsyncClient() as http,
    ):
        for name in ("a", "b", "c"):
            await http.post(f"{here}/api/sessions", json={"client_id": name})
        await http.post(f"{there}/api/sessions", json={"client_id": "a"})
        pages = [(await http.get(f"{there}/api/sessions", params={"limit": 2, "offset": at})).json() for at in (0, 2)]
    assert pages[0]["sessions"][0]["client_id"] == "a"
    assert {s["client_id"] for p in pages for s in p["sessions"]} == {"a", "b", "c"}
    assert [p["total"] for p in pages] == [3, 3]
    assert pages[0]["sessions"][0]["node"] == "star"
