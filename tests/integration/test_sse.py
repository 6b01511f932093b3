"""Server-sent events: an answer as it is made, followed and resumed from anywhere."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.clients import Sse, all_sse, check_whole, paced, read_sse, text_of
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack

pytestmark = pytest.mark.integration


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.serving() as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http


def ask(message: str = "Tell me of the sea", *, words: int = 40, speed: float = 200, client_id: str = "ann") -> dict[str, object]:
    return {"message": message, "client_id": client_id, "stream": True, "options": paced(words, speed)}


async def begun(client: httpx.AsyncClient, body: dict[str, object], *, events: int) -> list[Sse]:
    """Begin an answer, read so many events of it, and cut the connection."""
    read = []
    async with client.stream("POST", "/api/chat", json=body) as response:
        async for event in read_sse(response):
            read.append(event)
            if len(read) == events:
                break
    return read


async def test_a_streamed_answer_begins_with_accepted_counts_its_pieces_and_ends_once_with_a_true_receipt(
    client: httpx.AsyncClient,
) -> None:
    events = await all_sse(client, "POST", "/api/chat", json=ask(speed=40))  # slow enough for pieces of their own
    types = [e.event for e in events]
    assert types[:2] == ["accepted", "started"]
    assert types[-1] == "done"
    assert set(types[2:-1]) == {"piece"}
    assert len(types) > 5
    text = check_whole([e.data for e in events])
    assert len(text.split()) == 40


async def test_the_id_of_every_event_is_the_last_piece_so_far(client: httpx.AsyncClient) -> None:
    last = 0
    for event in await all_sse(client, "POST", "/api/chat", json=ask()):
        if event.event == "piece":
            assert event.data["seq"] == last + 1
            last += 1
        assert event.id == last


async def test_a_streamed_answer_is_what_the_history_keeps(client: httpx.AsyncClient) -> None:
    end = (await all_sse(client, "POST", "/api/chat", json=ask()))[-1].data
    page = (await client.get(f"/api/conversations/{end['conversation_id']}/history")).json()
    assert [m["role"] for m in page["messages"]] == ["user", "assistant"]
    assert page["messages"][1]["content"] == end["content"]
    assert page["messages"][1]["turn_id"] == end["turn_id"]


@pytest.mark.parametrize("how", ["Last-Event-ID", "after"])
async def test_a_cut_stream_goes_on_where_it_was_cut_while_the_answer_is_still_being_made(
    client: httpx.AsyncClient, how: str
) -> None:
    seen = await begun(client, ask(words=60, speed=60), events=6)
    turn, last = seen[0].data["turn_id"], seen[-1].id
    assert (await client.get(f"/api/turns/{turn}")).json()["state"] == "open"
    if how == "after":
        rest = await all_sse(client, "GET", f"/api/turns/{turn}/events", params={"after": last})
    else:
        rest = await all_sse(client, "GET", f"/api/turns/{turn}/events", headers={"Last-Event-ID": str(last)})
    assert rest[0].data["seq"] == last + 1
    check_whole([e.data for e in seen + rest])


async def test_an_ended_answer_can_be_resumed_after_every_one_of_its_pieces(client: httpx.AsyncClient) -> None:
    whole = [e.data for e in await all_sse(client, "POST", "/api/chat", json=ask(words=20))]
    turn, pieces = whole[0]["turn_id"], whole[-1]["receipt"]["pieces"]
    for after in range(pieces + 1):
        rest = [e.data for e in await all_sse(client, "GET", f"/api/turns/{turn}/events", params={"after": after})]
        assert [f["seq"] for f in rest if f["type"] == "piece"] == list(range(after + 1, pieces + 1))
        assert rest[-1] == whole[-1]
        assert (rest[0]["type"] == "accepted") is (after == 0)


async def test_last_event_id_wins_over_the_address_because_a_browser_repeats_the_address(client: httpx.AsyncClient) -> None:
    whole = await all_sse(client, "POST", "/api/chat", json=ask(words=20))
    turn, pieces = whole[0].data["turn_id"], whole[-1].id
    rest = await all_sse(client, "GET", f"/api/turns/{turn}/events?after=0", headers={"Last-Event-ID": str(pieces)})
    assert [e.event for e in rest] == ["done"]


async def test_who_claims_to_be_further_than_the_answer_goes_is_rewound_and_ends_whole(client: httpx.AsyncClient) -> None:
    whole = [e.data for e in await all_sse(client, "POST", "/api/chat", json=ask(words=10))]
    turn = whole[0]["turn_id"]
    rest = [e.data for e in await all_sse(client, "GET", f"/api/turns/{turn}/events", params={"after": 5_000})]
    assert rest[0]["type"] == "rewind"
    assert text_of(rest) == whole[-1]["content"]
    assert rest[-1] == whole[-1]


async def test_when_the_pieces_are_no_longer_kept_a_resume_gives_the_whole_message_and_says_so(
    client: httpx.AsyncClient, redis_server: RedisProcess
) -> None:
    whole = [e.data for e in await all_sse(client, "POST", "/api/chat", json=ask(words=10))]
    turn = whole[0]["turn_id"]
    with redis_server.client() as redis:
        assert redis.delete(f"aurora:turn:{turn}:log") == 1
    rest = [e.data for e in await all_sse(client, "GET", f"/api/turns/{turn}/events", params={"after": 1})]
    assert [f["type"] for f in rest] == ["done"]
    assert rest[0]["recovered"] is False
    assert rest[0]["content"] == whole[-1]["content"]


async def test_several_followers_at_other_nodes_see_the_same_answer_live(stack: Stack, redis_server: RedisProcess) -> None:
    async with (
        Stack(redis_server.url, node="star") as star,
        stack.serving() as here,
        star.serving() as there,
        httpx.AsyncClient(base_url=here, timeout=20) as http,
    ):
        seen = await begun(http, ask(words=50, speed=60), events=3)
        url = f"/api/turns/{seen[0].data['turn_id']}/events"
        streams = await asyncio.gather(*(all_sse(http, "GET", base + url) for base in (here, there, there)))
    first, *others = ([e.data for e in stream] for stream in streams)
    text = check_whole(first)
    assert len(text.split()) == 50
    assert all(check_whole(other) == text for other in others)


async def test_resuming_the_same_position_twice_at_once_serves_both(client: httpx.AsyncClient) -> None:
    seen = await begun(client, ask(words=40, speed=60), events=5)
    url = f"/api/turns/{seen[0].data['turn_id']}/events?after={seen[-1].id}"
    one, two = await asyncio.gather(all_sse(client, "GET", url), all_sse(client, "GET", url))
    assert [e.data for e in one] == [e.data for e in two]
    check_whole([e.data for e in seen + one])


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "²", "1 2", "99999999999", "0x10", "١"])
async def test_a_last_event_id_that_is_no_number_of_a_piece_is_refused(client: httpx.AsyncClient, value: str) -> None:
    turn = (await all_sse(client, "POST", "/api/chat", json=ask(words=5)))[0].data["turn_id"]
    answer = await client.get(f"/api/turns/{turn}/events", headers=[(b"Last-Event-ID", value.encode())])
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_what_is_refused_before_the_first_event_has_its_status_and_is_no_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/chat", json={**ask(), "personality": "nobody"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_personality"
    answer = await client.get(f"/api/turns/turn_{'a' * 26}/events")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_turn"


async def test_a_stopped_stream_ends_with_stopped_and_what_was_said(client: httpx.AsyncClient) -> None:
    frames = []
    async with client.stream("POST", "/api/chat", json=ask(words=500, speed=100)) as response:
        async for event in read_sse(response):
            frames.append(event.data)
            if len(frames) == 6:
                assert (await client.delete(f"/api/turns/{event.data['turn_id']}")).json()["state"] == "stopped"
    assert frames[-1]["type"] == "stopped"
    assert 0 < len(check_whole(frames).split()) < 500
