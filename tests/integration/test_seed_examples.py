"""Every example of the seed document, in its order and as it is written there: only the host and the conversation's id differ.

Read it beside `mission.md`. A curl example runs as the shell command that stands there; fields that Aurora adds are welcome,
fields that the seed shows must be there, with the JSON types it shows.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from websockets.asyncio.client import connect

from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack

pytestmark = pytest.mark.integration

TIMESTAMP = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z"
CONVERSATION = r"conv_user_123_\d{10}"


@pytest.fixture
async def aurora(redis_server: RedisProcess) -> AsyncIterator[str]:
    """The node aurora; gives its base URL."""
    async with Stack(redis_server.url, node="aurora") as stack, stack.serving() as url:
        yield url


@pytest.fixture
async def vengeance(redis_server: RedisProcess) -> AsyncIterator[str]:
    """The node vengeance, over the same Redis; gives its base URL."""
    async with Stack(redis_server.url, node="vengeance") as stack, stack.serving() as url:
        yield url


@pytest.fixture
def client(redis_server: RedisProcess) -> Iterator[redis.Redis]:
    """A client of the Redis that all nodes share."""
    with redis_server.client() as connection:
        yield connection


async def shell(command: str, base: str, **names: str) -> dict[str, Any]:
    """Run a command of the seed against the node at `base`, with `names` in place of the seed's; return its JSON."""
    assert shutil.which("curl"), "the seed's examples are curl commands: install the apt package curl"
    command = re.sub(r"http://[\w.]+:8000", base, command)
    for seeds, ours in names.items():
        command = re.sub(rf"\b{seeds}\b", ours, command)
    env = {**os.environ, "no_proxy": "*"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("bash", "-c", command, stdout=pipe, stderr=pipe, env=env)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, err.decode()
    answer = json.loads(out)
    assert isinstance(answer, dict)
    return answer


def check_shape(shown: dict[str, Any], answer: dict[str, Any]) -> None:
    """Check that `answer` has what the seed shows: every field, with the same JSON type, and timestamps of the same form."""
    for name, value in shown.items():
        assert name in answer, f"the field {name!r} is missing in {answer}"
        assert type(answer[name]) is type(value), f"{name!r} is {answer[name]!r}, the seed shows {value!r}"
        if isinstance(value, str) and re.fullmatch(TIMESTAMP, value):
            assert re.fullmatch(TIMESTAMP, answer[name])


# -- "How It Works"

TO_ANY_NODE = """
curl http://10.0.0.3:8000/api/chat \\
  -H "Content-Type: application/json" \\
  -d '{
    "message": "Hello Robbie!",
    "personality": "robbie",
    "client_id": "user_123"
  }'
"""


async def test_1_a_user_connects_to_any_node(vengeance: str) -> None:
    answer = await shell(TO_ANY_NODE, vengeance)

    assert answer["node"] == "vengeance"
    assert answer["personality"] == "robbie"
    assert answer["response"]


async def test_2_the_message_is_stored_in_redis(vengeance: str, client: redis.Redis) -> None:
    answer = await shell(TO_ANY_NODE, vengeance)

    conversation = answer["conversation_id"]
    assert re.fullmatch(CONVERSATION, conversation)
    assert sorted(client.keys("aurora:message:*")) == [f"aurora:message:{conversation}:1", f"aurora:message:{conversation}:2"]
    shown = {
        "role": "user",
        "content": "Hello Robbie!",
        "timestamp": "2025-10-06T12:00:00Z",
        "client_id": "user_123",
        "node": "vengeance",
    }
    stored = json.loads(client.get(f"aurora:message:{conversation}:1"))
    check_shape(shown, stored)
    assert stored | {**shown, "timestamp": stored["timestamp"]} == stored


async def test_3_the_event_is_published_to_all_nodes(vengeance: str, client: redis.Redis) -> None:
    heard = listen(client, "aurora:chat:message")

    answer = await shell(TO_ANY_NODE, vengeance)

    shown = {
        "type": "chat_message",
        "conversation_id": answer["conversation_id"],
        "client_id": "user_123",
        "node": "vengeance",
    }
    question, reply = next(heard), next(heard)
    assert question | shown == question
    assert reply | shown == reply
    assert (question["role"], reply["role"]) == ("user", "assistant")


async def test_5_the_response_is_stored_and_returned(vengeance: str, client: redis.Redis) -> None:
    answer = await shell(TO_ANY_NODE, vengeance)

    shown = {
        "role": "assistant",
        "content": answer["response"],
        "timestamp": answer["timestamp"],
        "node": "vengeance",
        "personality": "robbie",
    }
    stored = json.loads(client.get(f"aurora:message:{answer['conversation_id']}:2"))
    assert stored | shown == stored


async def test_6_the_users_next_message_can_hit_a_different_node(aurora: str, vengeance: str) -> None:
    answer = await shell(TO_ANY_NODE, vengeance)

    history = await shell(
        """
        curl http://10.0.0.1:8000/api/conversations/conv_user_123_1696608000/history
        """,
        aurora,
        conv_user_123_1696608000=answer["conversation_id"],
    )

    assert history["node"] == "aurora"
    assert [message["content"] for message in history["messages"]] == ["Hello Robbie!", answer["response"]]

    again = await shell(TO_ANY_NODE, aurora)
    assert (again["conversation_id"], again["node"]) == (answer["conversation_id"], "aurora")


# -- "Session Persistence"


async def test_a_session_made_on_one_node_is_known_on_every_node(aurora: str, vengeance: str, client: redis.Redis) -> None:
    heard = listen(client, "aurora:user:session")

    await shell(
        """curl -X POST http://10.0.0.1:8000/api/sessions -H "Content-Type: application/json" -d '{"client_id": "user_123"}'""",
        aurora,
    )

    stored = json.loads(client.get("aurora:session:user_123"))
    check_shape({"user_id": "user_123", "node": "aurora", "created_at": "2025-10-06T12:00:00Z"}, stored)
    assert (stored["user_id"], stored["node"]) == ("user_123", "aurora")
    assert 3500 < client.ttl("aurora:session:user_123") <= 3600

    event = next(heard)
    shown = {"type": "session_created", "user_id": "user_123", "node": "aurora"}
    assert event | shown == event

    listed = await shell("curl http://10.0.0.3:8000/api/sessions", vengeance)
    assert [session["client_id"] for session in listed["sessions"]] == ["user_123"]


async def test_a_message_makes_a_session_too_and_only_the_first_one_announces_it(vengeance: str, client: redis.Redis) -> None:
    heard = listen(client, "aurora:user:session")

    await shell(TO_ANY_NODE, vengeance)
    await shell(TO_ANY_NODE, vengeance)

    assert next(heard)["user_id"] == "user_123"
    assert next(heard, None) is None
    assert 0 < client.ttl("aurora:session:user_123") <= 3600


# -- "API Examples"


async def test_rest_api_simple_chat(aurora: str) -> None:
    answer = await shell(
        """
        curl -X POST http://10.0.0.1:8000/api/chat \\
          -H "Content-Type: application/json" \\
          -d '{
            "message": "What is TestPilot CPG?",
            "personality": "robbie",
            "client_id": "user_123"
          }'
        """,
        aurora,
    )

    shown = {
        "response": "[Robbie on aurora]: TestPilot CPG is...",
        "conversation_id": "conv_user_123_1696608000",
        "node": "aurora",
        "personality": "robbie",
        "timestamp": "2025-10-06T12:00:01Z",
    }
    check_shape(shown, answer)
    assert (answer["node"], answer["personality"]) == ("aurora", "robbie")
    assert re.fullmatch(CONVERSATION, answer["conversation_id"])


async def test_websocket_real_time_chat(aurora: str) -> None:
    """The seed's client: onopen sends one frame; onmessage prints `content` and `node` of whatever comes."""
    async with connect(aurora.replace("http://", "ws://") + "/ws/user_123") as ws:
        for _ in range(2):
            await ws.send(json.dumps({"type": "chat", "message": "Hello Robbie!", "personality": "robbie"}))

            response = json.loads(await asyncio.wait_for(ws.recv(), 10))

            assert isinstance(response["content"], str)
            assert response["content"]
            assert response["node"] == "aurora"

        # One frame per answer: what comes next is the answer to this ping, nothing that was left over.
        await ws.send(json.dumps({"type": "ping"}))
        assert json.loads(await asyncio.wait_for(ws.recv(), 10))["type"] == "pong"


async def test_get_conversation_history(aurora: str, vengeance: str) -> None:
    conversation = (await shell(TO_ANY_NODE, vengeance))["conversation_id"]
    command = """
    curl http://10.0.0.1:8000/api/conversations/conv_user_123_1696608000/history?limit=10
    """

    history = await shell(command, aurora, conv_user_123_1696608000=conversation)

    user, assistant = history["messages"]
    check_shape({"conversation_id": "conv_user_123_1696608000", "messages": [], "count": 2, "node": "aurora"}, history)
    check_shape({"role": "user", "content": "Hello Robbie!", "timestamp": "2025-10-06T12:00:00Z", "node": "vengeance"}, user)
    shown = {
        "role": "assistant",
        "content": "Hi! How can I help?",
        "timestamp": "2025-10-06T12:00:01Z",
        "node": "vengeance",
        "personality": "robbie",
    }
    check_shape(shown, assistant)
    assert (history["conversation_id"], history["count"], history["node"]) == (conversation, 2, "aurora")
    assert (user["role"], user["content"], user["node"]) == ("user", "Hello Robbie!", "vengeance")
    assert (assistant["role"], assistant["node"], assistant["personality"]) == ("assistant", "vengeance", "robbie")


async def test_history_gives_the_last_messages_up_to_the_limit(aurora: str) -> None:
    for _ in range(6):
        conversation = (await shell(TO_ANY_NODE, aurora))["conversation_id"]
    command = """
    curl http://10.0.0.1:8000/api/conversations/conv_user_123_1696608000/history?limit=10
    """

    history = await shell(command, aurora, conv_user_123_1696608000=conversation)

    assert history["count"] == 10
    assert [message["role"] for message in history["messages"]] == ["user", "assistant"] * 5
    assert history["total"] == 12


async def test_list_active_sessions(aurora: str, vengeance: str) -> None:
    for who, node in (("user_123", aurora), ("user_456", vengeance)):
        async with connect(node.replace("http://", "ws://") + f"/ws/{who}") as ws:
            await ws.send('{"type": "ping"}')
            await asyncio.wait_for(ws.recv(), 10)

    answer = await shell("curl http://10.0.0.1:8000/api/sessions", aurora)

    check_shape({"sessions": [], "total": 2, "node": "aurora"}, answer)
    assert (answer["total"], answer["node"]) == (2, "aurora")
    shown = {"client_id": "user_123", "node": "aurora", "connected_at": "2025-10-06T12:00:00Z", "status": "active"}
    for session in answer["sessions"]:
        check_shape(shown, session)
    assert {(session["client_id"], session["node"], session["status"]) for session in answer["sessions"]} == {
        ("user_123", "aurora", "active"),
        ("user_456", "vengeance", "active"),
    }


# -- "Verification"


async def test_check_that_the_service_is_running(aurora: str) -> None:
    answer = await shell("curl http://localhost:8000/", aurora)

    assert answer["node"] == "aurora"
    assert answer["status"] == "running"
    assert [engine["language_model"] for engine in answer["engines"]] == [False]
    assert "not a language model" in answer["engine"]


async def test_health_check(aurora: str) -> None:
    answer = await shell("curl http://localhost:8000/health", aurora)

    assert (answer["status"], answer["node"]) == ("healthy", "aurora")


async def test_send_a_test_message_and_see_its_session_from_a_different_node(aurora: str, vengeance: str) -> None:
    answer = await shell(
        """
        curl -X POST http://localhost:8000/api/chat \\
          -H "Content-Type: application/json" \\
          -d '{"message":"test","client_id":"test_user"}'
        """,
        aurora,
    )
    assert answer["response"]
    assert answer["conversation_id"].startswith("conv_test_user_")

    listed = await shell("curl http://localhost:8000/api/sessions", vengeance)

    assert [(session["client_id"], session["node"]) for session in listed["sessions"]] == [("test_user", "aurora")]
    assert listed["node"] == "vengeance"


async def test_the_seeds_endpoints_are_all_named_by_the_service(aurora: str) -> None:
    answer = await shell("curl http://localhost:8000/", aurora)

    assert set(answer["endpoints"]) >= {
        "GET /",
        "GET /health",
        "POST /api/chat",
        "WS /ws/{client_id}",
        "GET /api/sessions",
        "POST /api/sessions",
        "GET /api/conversations/{id}/history",
    }


def listen(client: redis.Redis, channel: str) -> Iterator[dict[str, Any]]:
    """Subscribe, and return what will be heard; it ends when nothing has come for a second."""
    pubsub = client.pubsub()
    pubsub.subscribe(channel)
    confirmed = pubsub.get_message(timeout=5)
    assert confirmed is not None
    assert confirmed["type"] == "subscribe"

    def heard() -> Iterator[dict[str, Any]]:
        with pubsub:
            while message := pubsub.get_message(timeout=1):
                yield json.loads(message["data"])

    return heard()
