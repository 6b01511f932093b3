"""A real Aurora as the cluster tests see it: its replicas, their processes, and what a turn left in Redis."""

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import httpx
import orjson
import psutil
import redis

from serve_app.chat.engine import Prefix, Prompt, PromptMessage
from serve_app.chat.events import Event, Receipt, is_end
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.client.assembly import Assembly
from serve_app.client.client import AuroraClient
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine
from tests.support.divergent import stretch_breaches
from tests.support.stack import personalities


@dataclass(frozen=True)
class Replica:
    application: str
    deployment: str
    replica_id: str
    pid: int


class Aurora(Protocol):
    """What a client can talk to and a test look into."""

    @property
    def urls(self) -> Sequence[str]:
        """Where it is: the first is asked first."""

    def stored_replies(self, turn_id: str, conversation_id: str) -> list[dict[str, Any]]:
        """What it keeps as replies of a turn."""


class Serving:
    """One running Aurora, seen from outside."""

    def __init__(self, url: str, dashboard_url: str, redis_url: str) -> None:
        self.url = url
        self.urls = [url]
        self.dashboard_url = dashboard_url
        self.redis = redis.Redis.from_url(redis_url, decode_responses=True, protocol=2, socket_timeout=10)

    def replicas(self, deployment: str) -> list[Replica]:
        answer = httpx.get(f"{self.dashboard_url}/api/serve/applications/", headers={"Accept": "application/json"}, timeout=20)
        found = []
        for name, application in answer.json()["applications"].items():
            for replica in application["deployments"].get(deployment, {}).get("replicas", []):
                if replica["state"] == "RUNNING" and replica["pid"] and psutil.pid_exists(replica["pid"]):
                    found.append(Replica(name, deployment, replica["replica_id"], replica["pid"]))
        return found

    def is_whole(self) -> bool:
        """Whether every deployment has its two replicas and the chat answers."""
        whole = all(len(self.replicas(name)) == 2 for name in ("Inference", "PersonalityRouter", "Ingress"))
        return whole and httpx.get(f"{self.url}/health", timeout=5).json()["status"] == "healthy"

    async def until_whole(self, timeout: float = 90.0) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if await asyncio.to_thread(self.is_whole):
                    return
            except (httpx.HTTPError, ValueError, KeyError):
                pass
            assert time.monotonic() < deadline, "the application did not become whole again"
            await asyncio.sleep(0.25)

    def kill(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            os.kill(replica.pid, signal.SIGKILL)

    def stored_replies(self, turn_id: str, conversation_id: str) -> list[dict[str, Any]]:
        return stored_replies(self.redis, turn_id, conversation_id)


def stored_replies(store: redis.Redis, turn_id: str, conversation_id: str) -> list[dict[str, Any]]:
    """What Redis holds as replies of a turn."""
    last = int(store.hget(f"aurora:conversation:{conversation_id}", "last_seq") or 0)
    kept = (store.get(f"aurora:message:{conversation_id}:{seq}") for seq in range(1, last + 1))
    messages = [orjson.loads(raw) for raw in kept if raw]
    return [m for m in messages if m["role"] == "assistant" and m["turn_id"] == turn_id]


async def undisturbed(
    message: str, options: dict[str, object], *, personality: str = "robbie", history: Sequence[PromptMessage] = ()
) -> str:
    """What the scripted engine says to a message when nothing happens to it; `history`: what the conversation held before."""
    engine, who = ScriptedEngine(ScriptedConfig(drills=True)), personalities().get(personality)
    prompt = Prompt(who, (*history, PromptMessage(Role.USER, message)))
    plain = Options.model_validate({k: v for k, v in options.items() if k != "words_per_second"}).over(who.options)
    return "".join([piece.text async for piece in engine.generate(prompt, plain, Prefix(), run="undisturbed")])


class Asked:
    """A client in the background that asks once and, like any good client, reconnects and resumes."""

    def __init__(self, aurora: Aurora, client_id: str, message: str, options: dict[str, object], *, explore: bool = True) -> None:
        self._aurora = aurora
        self._explore = explore
        self.client_id, self.message, self.options = client_id, message, options
        self.assembly = Assembly()
        self.events: list[tuple[float, Event]] = []
        self.lost: list[str] = []

    async def __aenter__(self) -> "Asked":
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        nodes, lost = self._aurora.urls, self.lost.append
        async with AuroraClient(nodes, self.client_id, patience_s=60, explore=self._explore, on_lost=lost) as client:
            async for event in client.ask(self.message, personality="robbie", options=self.options, assembly=self.assembly):
                self.events.append((time.monotonic(), event))

    async def pieces(self, count: int, timeout: float = 30.0) -> None:
        """Wait until so many pieces are there and the turn still runs."""
        async with asyncio.timeout(timeout):
            while self.assembly.seq < count:
                assert not self._task.done(), self._task.exception()
                await asyncio.sleep(0.01)
        assert self.assembly.end is None, "the answer was over before the fault: ask for a slower one"

    async def end(self, timeout: float = 90.0) -> str:
        """Wait for the end; return the text, proven by its receipt."""
        async with asyncio.timeout(timeout):
            await asyncio.shield(self._task)
        return self.assembly.whole()

    def running_on(self) -> str:
        """The replica that runs the latest attempt."""
        named = [event.replica for _, event in self.events if event.type in ("started", "takeover")]
        assert named, "no attempt has started yet"
        return named[-1]

    def generated_on(self) -> str:
        """The node that runs the latest attempt."""
        nodes = [
            event.node if event.type == "started" else event.generated_on
            for _, event in self.events
            if event.type in ("started", "takeover")
        ]
        assert nodes, "no attempt has started yet"
        return nodes[-1]

    def gap(self) -> float:
        """The longest pause between two events, in seconds."""
        times = [at for at, event in self.events if event.type in ("piece", "done")]
        return max(later - earlier for earlier, later in pairwise(times))

    def check(self) -> None:
        """One end, one stored reply, equal to what the client has; the receipt of both."""
        end = self.assembly.end
        assert end is not None
        assert end.type == "done", end
        assert [event.type for _, event in self.events].count("done") == 1
        assert sum(is_end(event) for _, event in self.events) == 1
        [reply] = self._aurora.stored_replies(end.turn_id, end.conversation_id)
        assert reply["content"] == self.assembly.text
        assert Receipt.of(piece.text for piece in self.assembly.pieces) == end.receipt

    def check_stretches(self) -> None:
        """Of a divergent answer: stretches of one mark each, cut exactly where the takeovers say; every word once."""
        takeovers = {event.attempt: event.after_seq for _, event in self.events if event.type == "takeover"}
        assert len(self.assembly.stretches) == len(takeovers) + 1
        assert stretch_breaches(self.assembly.stretches, takeovers) == []
        assert len(self.assembly.text.split()) == self.options["words"], "a word was lost or said twice"
