"""The client library over real sockets: whatever is cut, the answer is whole, once, and asked for once."""

import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest

from serve_app.chat.events import Event, Piece, Receipt
from serve_app.client import Assembly, AuroraClient, BrokenPromise, NobodyAnswers, RequestRefused
from tests.support.nodes import Door
from tests.support.redis_process import RedisProcess, free_port
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until

pytestmark = pytest.mark.integration

SLOW: dict[str, object] = {"words": 160, "words_per_second": 160}


@asynccontextmanager
async def front(stack: Stack) -> AsyncIterator[TcpProxy]:
    """Serve `stack` behind a proxy that tests can cut."""
    async with stack.serving(), TcpProxy(stack.port) as proxy:
        yield proxy


def url(proxy: TcpProxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


async def stored(client: AuroraClient, assembly: Assembly) -> str:
    """Return the one reply that is stored, which stands after the one message."""
    page = await client.history(assembly.conversation_id)
    assert [message["role"] for message in page["messages"]] == ["user", "assistant"]
    return str(page["messages"][1]["content"])


def numbers(events: list[Event]) -> list[int]:
    return [event.seq for event in events if isinstance(event, Piece)]


@pytest.mark.parametrize("chance", range(3))
async def test_an_answer_cut_at_random_points_arrives_whole_and_each_piece_once(stack: Stack, chance: int) -> None:
    cuts, lost = set(random.Random(chance).sample(range(2, 25), 3)), list[str]()
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada", on_lost=lost.append) as client:
        events, assembly = list[Event](), Assembly()
        async with aclosing(client.ask("Hello", options=SLOW, assembly=assembly)) as stream:
            async for event in stream:
                events.append(event)
                if assembly.seq in cuts:
                    cuts.remove(assembly.seq)
                    proxy.cut()

        assert len(lost) >= 2, "the cuts did not reach the connection"
        assert numbers(events) == list(range(1, assembly.seq + 1))
        assert [event.type for event in events].count("done") == 1
        assert assembly.whole() == await stored(client, assembly)
        assert len(assembly.text.split()) == 160


async def test_an_answer_survives_a_server_that_is_gone_for_a_while(stack: Stack) -> None:
    async with stack.serving():
        port, assembly, lost = free_port(), Assembly(), asyncio.Event()
        async with AuroraClient([f"http://127.0.0.1:{port}"], "ada", on_lost=lambda why: lost.set()) as client:
            asked = asyncio.create_task(collect(client, assembly))
            async with Door(stack.port, port):
                await until(lambda: assembly.seq >= 5)
            await lost.wait()
            said = assembly.seq
            await until(lambda: ended(stack, assembly.turn_id))
            assert assembly.seq == said, "it heard something through a closed door"
            async with Door(stack.port, port):
                events = await asked
                assert numbers(events) == list(range(1, assembly.seq + 1))
                assert assembly.whole() == await stored(client, assembly)


async def collect(client: AuroraClient, assembly: Assembly) -> list[Event]:
    return [event async for event in client.ask("Hello", options=SLOW, assembly=assembly)]


async def ended(stack: Stack, turn_id: str) -> bool:
    return (await stack.turns.read(turn_id)).end is not None


async def test_a_message_asked_before_the_server_is_there_is_answered_when_it_comes(stack: Stack) -> None:
    async with stack.serving():
        port, lost = free_port(), asyncio.Event()
        async with AuroraClient([f"http://127.0.0.1:{port}"], "ada", on_lost=lambda why: lost.set()) as client:
            asked = asyncio.create_task(client.say("Hello"))
            await lost.wait()
            async with Door(stack.port, port):
                assembly = await asked
                assert assembly.whole() == await stored(client, assembly)


async def test_a_message_whose_answer_is_lost_on_the_way_is_stored_once(stack: Stack) -> None:
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada", explore=False) as client:
        answers = list[bytes]()

        def lose_the_first(chunk: bytes) -> bytes:
            answers.append(chunk)
            if len(answers) == 1:
                asyncio.get_running_loop().call_soon(proxy.cut)
                return b""
            return chunk

        proxy.swallow = lose_the_first
        assembly = await client.say("Hello")

        assert answers[0].startswith(b"HTTP/1.1 200"), "what was lost was to be the answer"
        assert assembly.whole() == await stored(client, assembly)
        assert len(await stack.turns.recent_turns("ada")) == 1


async def test_a_connection_that_says_nothing_is_given_up(stack: Stack) -> None:
    lost, assembly = list[str](), Assembly()
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada", silence_s=0.5, on_lost=lost.append) as client:
        async with aclosing(client.ask("Hello", options=SLOW, assembly=assembly)) as events:
            async for _ in events:
                if assembly.seq == 3 and not lost:
                    proxy.stall()
                    asyncio.get_running_loop().call_later(1.0, proxy.flow)

        assert lost
        assert "Timeout" in lost[0]
        assert assembly.whole() == await stored(client, assembly)


async def test_another_node_goes_on_where_one_is_gone(redis_server: RedisProcess) -> None:
    async with (
        Stack(redis_server.url, node="aurora") as one,
        Stack(redis_server.url, node="star") as two,
        AsyncExitStack() as until_it_goes,
        two.serving() as second,
    ):
        first = url(await until_it_goes.enter_async_context(front(one)))
        async with AuroraClient([first, second], "ada") as client:
            events, assembly = list[Event](), Assembly()
            async with aclosing(client.ask("Hello", options=SLOW, assembly=assembly)) as stream:
                async for event in stream:
                    events.append(event)
                    if assembly.seq == 4:
                        await until_it_goes.aclose()

            assert numbers(events) == list(range(1, assembly.seq + 1))
            assert assembly.whole() == await stored(client, assembly)
            assert (await client.info())["node"] == "star"


async def test_a_dead_run_is_taken_over_and_the_client_hears_where(stack: Stack) -> None:
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        assembly = Assembly()
        async with aclosing(client.ask("Hello", options={**SLOW, "divergent": True}, assembly=assembly)) as events:
            async for event in events:
                if event.type == "piece" and event.seq == 5:
                    stack.pool.kill_run(assembly.turn_id)
                    proxy.cut()

        assert assembly.whole() == await stored(client, assembly)
        first, second = assembly.stretches
        assert (first.attempt, second.attempt, assembly.cuts) == (1, 2, {2: first.last})
        marks = [{word.split("~")[1] for word in stretch.text.split() if "~" in word} for stretch in (first, second)]
        assert [len(found) for found in marks] == [1, 1]
        assert marks[0] != marks[1]


async def test_a_log_that_is_gone_gives_the_whole_message(stack: Stack, redis_server: RedisProcess) -> None:
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        first = await client.say("Hello", options={"words": 40})
        with redis_server.client() as redis:
            redis.delete(f"aurora:turn:{first.turn_id}:log")

        late = Assembly()
        events = [event async for event in client.follow(first.turn_id, assembly=late)]

        assert [event.type for event in events] == ["accepted", "done"]
        assert late.whole() == first.whole()


async def test_who_is_ahead_of_the_log_after_a_double_failure_gets_the_stored_text(
    stack: Stack, redis_server: RedisProcess
) -> None:
    """The primary and the writer died together: what the client has last was never kept, and the log has grown past it."""
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        first = await client.say("Hello", options={"words": 40})
        ahead = Assembly()
        for event in [event async for event in client.follow(first.turn_id)][:-1]:
            ahead.take(event)
        ahead.pieces[-1] = ahead.pieces[-1].model_copy(update={"text": "never kept"})

        events = [event async for event in client.follow(first.turn_id, assembly=ahead)]

        assert [events[0].type, events[-1].type] == ["rewind", "done"]
        assert ahead.whole() == first.whole()


async def test_text_with_every_kind_of_line_end_arrives_as_it_was_said(stack: Stack) -> None:
    odd = "A\u2028B\u2029C\u0085D\rE\vF"
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        accepted, *_ = [event async for event in client.ask(odd)]

        assert accepted.model_dump()["content"] == odd


@pytest.mark.parametrize(
    ("how", "code"),
    [({"message": ""}, "invalid_request"), ({"message": "Hi", "personality": "nobody"}, "no_personality")],
)
async def test_a_refusal_comes_at_once_and_says_why(stack: Stack, how: dict[str, str], code: str) -> None:
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        with pytest.raises(RequestRefused) as caught:
            await client.say(**how)

        assert (caught.value.code, caught.value.retryable) == (code, False)
        assert caught.value.message == str(caught.value) != ""


async def test_a_second_message_meanwhile_is_refused_with_the_turn_that_is_in_the_way(stack: Stack) -> None:
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        events = client.ask("Hello", options={"words": 2_000, "words_per_second": 20})
        async with aclosing(events):
            turn_id = (await anext(events)).turn_id
            with pytest.raises(RequestRefused) as caught:
                await client.say("And?")

            assert (caught.value.code, caught.value.turn_id) == ("turn_in_progress", turn_id)
            assert (await client.stop(turn_id))["state"] == "stopped"
            assert [event.type async for event in events][-1] == "stopped"


@asynccontextmanager
async def impostor(reply: Callable[[str], tuple[str, str]]) -> AsyncIterator[str]:
    """Serve whatever `reply` makes of a request's head: a status line and a body. Gives the base URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status, body = reply((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oh", "502 Bad Gateway", "503 Unavailable"])
async def test_a_node_that_cannot_yet_is_asked_again_with_the_same_key(status: str) -> None:
    """HAProxy and Serve answer for an ingress that is starting: neither speaks our error shape."""
    keys = list[str]()
    end = json.dumps({"type": "done", "turn_id": "t", "receipt": Receipt.of([]).model_dump()})

    def reply(head: str) -> tuple[str, str]:
        keys.append(head.lower().split("idempotency-key: ")[1].split("\r\n")[0])
        return ("200 OK", f"data: {end}\n\n") if len(keys) == 4 else (status, "not now")

    async with impostor(reply) as node, AuroraClient([node], "ada", explore=False) as client:
        assembly = await client.say("Hello")

    assert assembly.whole() == ""
    assert len(keys) == 4
    assert len(set(keys)) == 1


async def test_a_node_that_only_repeats_itself_is_not_waited_for_for_ever() -> None:
    again = json.dumps({"type": "accepted", "turn_id": "t", "conversation_id": "conv_a_1", "message_seq": 1})

    async with (
        impostor(lambda head: ("200 OK", f"data: {again}\n\n")) as node,
        AuroraClient([node], "a", patience_s=0.5, explore=False) as client,
    ):
        with pytest.raises(NobodyAnswers) as caught:
            await client.say("Hello")

    assert caught.value.turn_id == "t"


async def test_silence_everywhere_is_told_with_the_nodes_and_what_to_do() -> None:
    nodes = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"]
    async with AuroraClient(nodes, "ada", patience_s=0.3) as client:
        with pytest.raises(NobodyAnswers) as caught:
            await client.say("Hello")

    assert caught.value.nodes == tuple(nodes)
    assert "aurora-cli status" in str(caught.value)


async def test_a_reply_that_is_not_the_receipts_is_never_taken_for_whole(stack: Stack) -> None:
    """A proxy that changes one letter of a piece: the reader is told, instead of reading it."""
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        proxy.swallow = lambda chunk: re.sub(rb'"text":"\w', b'"text":"#', chunk)
        with pytest.raises(BrokenPromise):
            await client.say("Hello", options={"words": 20})


async def test_conversations_and_personalities_are_the_clients_own(stack: Stack) -> None:
    async with front(stack) as proxy, AuroraClient([url(proxy)], "ada") as client:
        made = await client.start_conversation("kristina")
        assembly = await client.say("Hello", conversation_id=made["conversation_id"])

        assert (assembly.conversation_id, assembly.personality) == (made["conversation_id"], "kristina")
        assert [c["conversation_id"] for c in (await client.conversations())["conversations"]] == [made["conversation_id"]]
        assert {p["name"] for p in (await client.personalities())["personalities"]} >= {"robbie", "kristina"}


@pytest.mark.parametrize("nodes", [[], ["localhost:8000"]])
def test_nodes_that_are_no_urls_are_refused_at_once(nodes: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape("http://127.0.0.1:8000")):
        AuroraClient(nodes, "ada")


def test_the_client_needs_neither_fastapi_nor_redis_nor_ray() -> None:
    code = "import sys, serve_app.client; print(*sorted({'fastapi', 'redis', 'ray', 'starlette', 'uvicorn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
