"""A node that leaves takes no answer with it: live ones finish or move, connections are told to come back elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosedError

import serve_app.state
from cluster.cli import app as cli
from cluster.failures import LifecycleError
from cluster.node import drain as command
from cluster.node.drain import Drain
from serve_app.api.in_flight import InFlight
from serve_app.chat.drain import GOODBYE_SPREAD_S
from serve_app.chat.events import Done, Event, Started, Takeover
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.chat.supervise import Ran, SupervisorConfig
from serve_app.chat.turns import BARREN_ATTEMPTS, Claim, Plan
from serve_app.client import Assembly, AuroraClient
from serve_app.client.socket import AuroraSocket
from serve_app.state import keys
from tests.support.clients import Device, all_sse, check_whole, paced
from tests.support.nodes import Node, cluster
from tests.support.redis_process import RedisProcess, free_port
from tests.support.stack import Stack
from tests.support.systemd import Systemd, node_process
from tests.support.turn_tools import claim, logged, new_turn, open_turn, undisturbed
from tests.support.waiting import Listening, until

pytestmark = pytest.mark.integration

HEARS_S = 1.5
"""Within this a node knows that it is to leave: it looks once a second."""
MOVES_S = 3.0
"""From its node's time being up to another node speaking: beats of a second, and what a busy machine takes beyond."""
SLOW = paced(60, 12)


@dataclass
class Pair:
    """The node that is to leave, the one that stays, and what its operator has in hand."""

    star: Node
    iceland: Node
    drain: Drain

    async def ask(self, within_s: float = 30) -> None:
        """Ask star to leave and wait until it has heard."""
        assert await asyncio.to_thread(command.begin, self.drain, "star", timeout_s=within_s) == within_s
        await until(lambda: self.star.stack.departure.leaving, HEARS_S)

    async def empty(self) -> bool:
        """Whether star has nothing in hand, as it says itself."""
        left = await asyncio.to_thread(self.drain.left)
        return left is not None and left.total() == 0


@pytest.fixture
async def nodes(redis_server: RedisProcess) -> AsyncIterator[Pair]:
    """Two nodes over one Redis; each prefers its own engine and can use the other's."""
    async with cluster(redis_server.url, ("star", "iceland")) as (star, iceland):
        star.stack.pool.others, iceland.stack.pool.others = [iceland.stack.pool], [star.stack.pool]
        async with star.stack.watching_for_drain(), iceland.stack.watching_for_drain():
            yield Pair(star, iceland, Drain(redis_server.url, "star"))


def ask(stack: Stack, **options: float) -> Listening:
    """Ask something at a node, and listen to the answer there."""
    return Listening(stack.service.ask(Ask("ann", "Hello", options=Options.model_validate(options or SLOW))))


def attempts(events: list[Event]) -> list[tuple[str, str]]:
    """Where each attempt ran, and why it began."""
    seen = [event for event in events if isinstance(event, Started | Takeover)]
    return [(e.node, "begun") if isinstance(e, Started) else (e.generated_on, e.reason) for e in seen]


async def test_an_answer_that_ends_in_time_ends_where_it_is(nodes: Pair) -> None:
    async with ask(nodes.star.stack, **paced(30, 12)) as answer:
        await answer.pieces(3)
        await nodes.ask(30)
        events = await answer.end()
    assert attempts(events) == [("star", "begun")]
    await until(nodes.empty, HEARS_S + 1)


async def test_an_answer_whose_time_is_up_goes_on_at_once_elsewhere_whole(nodes: Pair) -> None:
    async with ask(nodes.star.stack) as answer:
        await answer.pieces(3)
        await nodes.ask(0)
        asked_at = time.monotonic()
        await answer.first("takeover", MOVES_S)
        assert time.monotonic() - asked_at < MOVES_S
        events = await answer.end()
    assert attempts(events) == [("star", "begun"), ("iceland", "moved")]
    end = events[-1]
    assert isinstance(end, Done)
    assert end.generated_on == "iceland"
    assert end.content == await undisturbed("Hello", Options.model_validate(SLOW))
    await until(nodes.empty, HEARS_S + 1)


async def test_an_answer_moves_also_when_the_router_that_watches_it_stays(nodes: Pair) -> None:
    nodes.iceland.stack.supervisor._pools = nodes.star.stack.pool  # Ray chose that replica
    for node in (nodes.star, nodes.iceland):
        node.stack.supervisor._config = SupervisorConfig(sweep_batch=0)  # no sweep would find it
    async with ask(nodes.iceland.stack) as answer:
        await answer.pieces(3)
        await nodes.ask(0)
        events = await answer.end()
    assert attempts(events) == [("star", "begun"), ("iceland", "moved")]
    assert isinstance(events[-1], Done)


async def test_an_answer_moves_also_when_the_router_that_watched_it_is_gone(nodes: Pair) -> None:
    async with ask(nodes.star.stack) as answer:
        await answer.pieces(3)
        for task in nodes.star.stack.supervisor._tasks:
            task.cancel()
        await nodes.ask(0)
        events = await answer.end()
    assert attempts(events) == [("star", "begun"), ("iceland", "moved")]


async def test_what_arrives_at_a_leaving_node_is_answered_by_an_engine_elsewhere_without_delay(nodes: Pair) -> None:
    await nodes.ask()
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=nodes.star.url, timeout=20, trust_env=False) as http:
        answer = await http.post("/api/chat", json={"client_id": "ann", "message": "Hello"})
    assert answer.status_code == 200
    assert answer.json()["generated_on"] == "iceland"
    assert time.monotonic() - begun < 1


async def test_a_replica_that_is_leaving_is_passed_over_by_routers_that_do_not_know_yet(nodes: Pair) -> None:
    await nodes.ask()
    star = nodes.star.stack
    nodes.iceland.stack.supervisor._pools = star.pool
    async with ask(nodes.iceland.stack, **paced(5, 50)) as answer:
        events = await answer.end()
    assert attempts(events) == [("iceland", "begun")]
    assert star.generator.running == 0


class FullPool:
    """Never has room."""

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_turn_that_waits_on_a_leaving_node_is_taken_on_elsewhere_within_two_seconds(nodes: Pair) -> None:
    nodes.star.stack.supervisor._pools = FullPool()
    async with ask(nodes.star.stack, **paced(5, 50)) as answer:
        await until(lambda: nodes.star.stack.supervisor.waiting == 1)
        await nodes.ask()
        heard_at = time.monotonic()
        await answer.first("started")
        assert time.monotonic() - heard_at < 2.5
        events = await answer.end()
    assert attempts(events) == [("iceland", "begun")]
    assert nodes.star.stack.supervisor.waiting == 0


async def test_a_leaving_node_does_not_sweep_and_sweeps_again_when_it_stays(nodes: Pair, redis_server: RedisProcess) -> None:
    await nodes.iceland.stack.supervisor.__aexit__()
    await nodes.ask()
    lost = await open_turn(nodes.iceland.stack)
    with redis_server.client() as client:
        swept = int(client.get("aurora:sweep") or 0)
        client.zadd("aurora:turns:open", {lost.turn_id: swept})
        deadline = time.monotonic() + 2.5  # two beats: a sweep would come with each
        while time.monotonic() < deadline:
            assert int(client.get("aurora:sweep") or 0) == swept
            await asyncio.sleep(0.1)
        assert await asyncio.to_thread(nodes.drain.cancel)
        await until(lambda: int(client.get("aurora:sweep") or 0) > swept, HEARS_S + 1.5)


async def test_moving_a_turn_again_and_again_uses_up_none_of_its_attempts(nodes: Pair) -> None:
    at = nodes.star.stack
    turn = await open_turn(at, client_id="mo")
    token = turn.run
    for number in range(2 * BARREN_ATTEMPTS):
        verdict, _ = await at.turns.release(turn.turn_id, token=token, dispatch=turn.dispatch, from_seq=1)
        assert verdict == "ok"
        token = f"again-{number}"
        claimed = await claim(at, turn.turn_id, turn.dispatch, token)
        assert isinstance(claimed, Claim)
    assert await at.redis.hget("aurora:turn:" + turn.turn_id, "barren") == b"1"


async def test_a_run_that_gave_its_turn_back_can_write_nothing_more(nodes: Pair) -> None:
    at = nodes.star.stack
    turn = await open_turn(at, client_id="mo")
    tail = logged(["Hel", "lo"])
    assert (await at.turns.release(turn.turn_id, token=turn.run, dispatch=turn.dispatch, tail=tail, from_seq=1))[0] == "ok"
    assert (await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["!"], after=2)))[0] == "superseded"
    due = float(await at.redis.zscore("aurora:turns:open", turn.turn_id))
    assert due <= (await at.redis.time())[0] * 1000 + 1_000, "it is due at once"
    claimed = await claim(at, turn.turn_id, turn.dispatch)
    assert [piece.text for piece in claimed.pieces] == ["Hel", "lo"]


async def test_only_what_nobody_has_claimed_is_handed_over(nodes: Pair, redis_server: RedisProcess) -> None:
    at = nodes.star.stack
    claimed, waiting = await open_turn(at, client_id="mo"), new_turn(client_id="bo")
    await at.turns.begin(waiting)
    await at.turns.hand_over([(claimed.turn_id, claimed.dispatch), (waiting.turn_id, "wrong")])
    with redis_server.client() as client:
        leases = dict(client.zrange("aurora:turns:open", 0, -1, withscores=True))
        now = client.time()[0] * 1000
        assert min(leases[claimed.turn_id], leases[waiting.turn_id]) > now + 1_000
        await at.turns.hand_over([(waiting.turn_id, waiting.token)])
        assert client.zscore("aurora:turns:open", waiting.turn_id) <= leases[waiting.turn_id] - 1_000


async def test_websockets_get_a_goodbye_and_the_answer_goes_on_at_another_node_whole(nodes: Pair) -> None:
    async with Device(nodes.star.url, "ann", query="?stream=true") as device:
        await device.chat("Hello", options=paced(80, 12))
        frames = await device.until("piece")
        asked = asyncio.create_task(nodes.ask())
        frames += await device.until("goodbye", timeout=HEARS_S + GOODBYE_SPREAD_S + 2)
        assert frames.pop() == {"type": "goodbye", "reason": "draining", "node": "star"}
        with pytest.raises(ConnectionClosedError) as closed:
            await device.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        await asked
    pieces = [frame for frame in frames if frame["type"] == "piece"]
    async with Device(nodes.iceland.url, "ann") as device:
        last = pieces[-1]
        await device.send(type="resume", turn_id=last["turn_id"], after=last["seq"], attempt=last["attempt"])
        frames += await device.until("done")
    assert check_whole(frames) == await undisturbed("Hello", Options.model_validate(paced(80, 12)))


async def test_a_websocket_made_to_a_leaving_node_is_served_until_its_time_is_up(nodes: Pair) -> None:
    await nodes.ask(3)
    asked_at = time.monotonic()
    async with Device(nodes.star.url, "bob", query="?stream=true") as device:
        await device.chat("Hello")
        await device.until("done")
        await device.until("goodbye", timeout=3 + GOODBYE_SPREAD_S + 2)
        assert time.monotonic() - asked_at > 2


async def test_devices_and_streams_of_the_client_library_lose_and_repeat_nothing(nodes: Pair) -> None:
    urls = [nodes.star.url, nodes.iceland.url]
    assembly = Assembly()
    options: dict[str, object] = dict(paced(100, 12))

    async def stream() -> str:
        async with AuroraClient(urls, "ann", explore=False) as client:
            async for _ in client.ask("Hello", personality="robbie", options=options, assembly=assembly):
                pass
        return assembly.whole()

    async with AuroraSocket(urls, "bob", explore=False) as device:
        turn_id = await device.ask("Hello", personality="robbie", options=options)
        streaming = asyncio.create_task(stream())
        await until(lambda: assembly.seq > 3)
        await nodes.ask(1)
        async with asyncio.timeout(30):
            async for event in device.events():
                if isinstance(event, Done):
                    break
            text = await streaming
    assert text == device.assemblies[turn_id].whole() == await undisturbed("Hello", Options.model_validate(options))
    await until(nodes.empty, HEARS_S + GOODBYE_SPREAD_S)


async def test_a_stream_of_a_leaving_node_ends_after_a_comment_when_its_time_is_up(nodes: Pair) -> None:
    async with httpx.AsyncClient(base_url=nodes.star.url, timeout=20, trust_env=False) as http:
        body = {"client_id": "ann", "message": "Hello", "stream": True, "options": paced(150, 12)}
        async with http.stream("POST", "/api/chat", json=body) as response:
            lines = response.aiter_lines()
            assert await anext(lines)
            await nodes.ask(0)
            rest = [line async for line in lines]
    assert rest[-2:] == [": goodbye, this node is leaving", ""]
    assert "event: done" not in rest
    [turn_id] = {line.split('"turn_id":"')[1].split('"')[0] for line in rest if '"turn_id":"' in line}
    async with httpx.AsyncClient(base_url=nodes.iceland.url, timeout=30, trust_env=False) as http:
        frames = [event.data for event in await all_sse(http, "GET", f"/api/turns/{turn_id}/events")]
    assert len(check_whole(frames).split()) == 150


async def test_a_leaving_node_says_so_and_is_as_before_when_it_stays(nodes: Pair) -> None:
    async with (
        httpx.AsyncClient(base_url=nodes.star.url, timeout=20, trust_env=False) as star,
        httpx.AsyncClient(base_url=nodes.iceland.url, timeout=20, trust_env=False) as iceland,
    ):

        async def said_of_star() -> str:
            """What the other node tells clients of it."""
            [status] = [node["status"] for node in (await iceland.get("/")).json()["nodes"] if node["node"] == "star"]
            return str(status)

        async def tells_to_go_elsewhere() -> bool:
            return await said_of_star() == "draining"

        async def tells_to_come() -> bool:
            return await said_of_star() == "serving"

        await nodes.ask()
        await until(tells_to_go_elsewhere)
        refused = await star.get("/health")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (await iceland.get("/health")).status_code == 200
        assert await asyncio.to_thread(nodes.drain.cancel)
        await until(tells_to_come)
        assert (await star.get("/health")).status_code == 200
        assert not nodes.star.stack.departure.leaving


class Operator:
    """Types commands."""

    def __init__(self, folder: Path, redis_url: str, *, star: str = "192.0.2.1") -> None:
        self._file = folder / "cluster.yaml"
        self._file.write_text(
            f"name: test\nhead: star\nserve_config: serve.yaml\nredis: {{url: '{redis_url}'}}\nray: {{redis: '127.0.0.1:1'}}\n"
            f"nodes: {{star: {{address: {star}}}, iceland: {{address: 192.0.2.2}}}}\n"
        )

    async def types(self, *words: str) -> tuple[int, str]:
        """Return how `aurora-cli node drain …` ended, and what it said."""
        typed = ["node", "drain", *words, "--config", str(self._file)]
        result = await asyncio.to_thread(CliRunner().invoke, cli, typed)
        return result.exit_code, " ".join(result.output.split())


async def test_the_command_waits_until_the_node_has_nothing_in_hand(
    nodes: Pair, tmp_path: Path, redis_server: RedisProcess
) -> None:
    operator = Operator(tmp_path, redis_server.url)
    async with ask(nodes.star.stack, **paced(40, 12)) as answer:
        await answer.pieces(3)
        code, said = await operator.types("star")
        assert (code, answer.events[-1].type) == (0, "done")
    assert said.endswith(
        "star has nothing in hand any more: it is safe to stop. On star: sudo systemctl stop aurora-head where systemd runs it, "
        "else aurora-cli node stop. If it is not stopped, it serves again 15 minutes after its time was up."
    )
    assert (await operator.types("star", "--cancel"))[1] == "star stays."
    assert (await operator.types("star", "--cancel"))[1] == "star was not leaving."


async def test_the_command_asks_once_and_says_what_it_cannot_do(nodes: Pair, tmp_path: Path, redis_server: RedisProcess) -> None:
    operator = Operator(tmp_path, redis_server.url)
    code, said = await operator.types("star", "--stop", "--no-wait")
    assert (code, "--stop needs --wait" in said) == (1, True)
    assert (await operator.types("star", "--no-wait", "--timeout", "60"))[0] == 0
    assert 50 < await asyncio.to_thread(nodes.drain.ask, 5) <= 60, "the time it was given first stands"

    async def alone() -> bool:
        return (await asyncio.to_thread(Drain(redis_server.url, "iceland").others)) == []

    await until(alone)
    code, said = await operator.types("iceland")
    assert (code, "No other node serves" in said) == (1, True)


async def test_the_command_names_the_unit_of_a_node_that_is_not_the_head(
    nodes: Pair, tmp_path: Path, redis_server: RedisProcess
) -> None:
    code, said = await Operator(tmp_path, redis_server.url).types("iceland")
    assert (code, "On iceland: sudo systemctl stop aurora-worker where systemd" in said) == (0, True)


async def test_the_command_stops_the_node_by_its_unit_where_systemd_runs_it(
    nodes: Pair, tmp_path: Path, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "node"
    monkeypatch.setenv("AURORA_HOME", str(prefix / ".aurora"))
    with node_process(prefix / ".aurora") as ray:
        systemd = Systemd(tmp_path / "bin", monkeypatch, unit="aurora-head.service", prefix=prefix, stop=f"kill {ray.pid}")
        operator = Operator(tmp_path, redis_server.url, star="127.0.0.1")
        code, said = await operator.types("star", "--stop", "--timeout", "0")
        assert (code, said.endswith("star is stopped.")) == (0, True), said
        assert ray.poll() is not None
    assert systemd.changes == ["stop aurora-head.service"]
    assert nodes.star.stack.departure.leaving, "it had left before"


async def test_what_is_in_hand_are_requests_and_connections_and_not_the_life_of_the_replica(nodes: Pair) -> None:
    service, seen = nodes.star.stack.service, list[int]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(service.in_flight)

    for kind in ("lifespan", "http", "websocket"):
        await InFlight(app, service)({"type": kind}, None, None)  # type: ignore[arg-type]
    assert (seen, service.in_flight) == ([0, 1, 1], 0)


async def test_the_command_gives_up_on_a_node_that_keeps_something_in_hand(nodes: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_GOODBYES_S", 3.0)
    nodes.star.stack.service.in_flight += 1
    await nodes.ask(0)
    said: list[str] = []
    with pytest.raises(LifecycleError, match="star still has in hand"):
        await asyncio.to_thread(command.wait, nodes.drain, "star", timeout_s=0, tell=said.append)
    assert said


async def test_a_node_that_starts_is_let_off_its_drain_and_says_so_if_it_cannot_be(
    nodes: Pair, redis_server: RedisProcess
) -> None:
    await nodes.ask()
    said: list[str] = []
    await asyncio.to_thread(command.lift, redis_server.url, "star", say=said.append)
    await until(lambda: not nodes.star.stack.departure.leaving, HEARS_S)
    assert said == []
    await asyncio.to_thread(command.lift, f"redis://127.0.0.1:{free_port()}", "star", say=said.append)
    assert "aurora-cli node drain star --cancel" in said[0]


def test_the_keys_of_the_command_are_those_of_the_chat() -> None:
    assert command.NODE.format("star") == keys._PREFIXES["node"] + "star"
    assert keys._PREFIXES["nodes"] == command.NODES
    assert command.KEPT_S == keys.DRAIN_SECONDS
    script = (Path(serve_app.state.__file__).parent / "lua" / "drain.lua").read_text()
    for key in (command.DRAIN, command.LEFT):
        assert f"`{key.format('{node}')}`" in (keys.__doc__ or "")
        assert f"K.node .. ARGV[1] .. '{key.removeprefix(command.NODE)}'" in script
