"""Talking to Aurora over any of its nodes.

A message gets its idempotency key before it is sent, and is sent with it until somebody has kept it; from then on the
turn is followed from wherever the text stands, on another node or the same again. What is yielded is yielded once.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from serve_app.chat.events import TERMINAL, Event
from serve_app.client.assembly import Assembly
from serve_app.client.nodes import Nodes
from serve_app.client.promises import Broken, BrokenPromise
from serve_app.client.retry import Away, Patience, check, reason
from serve_app.client.seen import Seen
from serve_app.client.sse import BadStream, read_events
from serve_app.client.watch import Watch

SILENCE_S = 20.0
"""A stream says something at least every 15 s, and every other answer is there by then; whatever is silent for longer is
dead, even if the node answers probes (a proxy on the way may have lost the connection)."""
CONNECT_S, CONNECT_ALONE_S = 1.0, 3.0
"""How long a connection may take: where there are other nodes, and where there is but one."""


class AuroraClient:
    """One client of Aurora, over any number of nodes. Use as `async with`.

    It learns of further nodes from those it is given, and goes to the nearest. Whatever it does is tried again, on another
    node or the same, until no node has said anything for `patience_s` seconds; a node that goes silent without an error,
    frozen or cut off, is left after about 4 s. Every message is answered once, however often it had to be sent. Leaving an
    iteration, or the client, stops no answer: `stop` does. `seen` counts what it went through.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        client_id: str,
        *,
        patience_s: float = 60.0,
        silence_s: float = SILENCE_S,
        explore: bool = True,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Ask the `nodes` (base URLs), the first one first; `on_lost` hears why whenever a node has to be asked again.

        Without `explore` it knows those nodes only, and leaves one only when it fails: for whoever talks to a balancer.

        Raises:
            ValueError: no node, or one that is no http:// or https:// URL.
        """
        self.client_id = client_id
        self.seen = Seen()
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._explore = explore
        self._on_lost = on_lost
        self._http = httpx.AsyncClient(timeout=silence_s, trust_env=False)
        self._nodes = Nodes(nodes, self._http, self.seen)
        self._exploring: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AuroraClient":
        """Begin to learn which nodes there are, and which is near."""
        if self._explore:
            self._exploring = asyncio.create_task(self._nodes.keep_up())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._exploring is not None:
            self._exploring.cancel()
            await asyncio.gather(self._exploring, return_exceptions=True)
        await self._http.aclose()

    @property
    def nodes(self) -> list[str]:
        """The nodes it knows now, as base URLs."""
        return self._nodes.urls

    async def ask(
        self,
        message: str,
        *,
        personality: str = "",
        conversation_id: str = "",
        options: dict[str, object] | None = None,
        assembly: Assembly | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Send a message and yield the events of its turn up to its end: each piece once, takeovers and rewinds as they come.

        `assembly`, if given, holds at any time what was said so far, proven at the end. An end that is not `recovered`
        carries the whole message instead of the pieces that are missing.

        Raises:
            RequestRefused: nothing was stored, and trying again changes nothing.
            NobodyAnswers: for longer than the client is patient.
            BrokenPromise: what came is provably not the reply, from the start and over one connection.
        """
        given = {"personality": personality, "conversation_id": conversation_id, "options": options}
        body = {"message": message, "client_id": self.client_id, "stream": True, **{k: v for k, v in given.items() if v}}
        begin = {"method": "POST", "url": "/api/chat", "json": body, "headers": {"Idempotency-Key": uuid.uuid4().hex}}
        async with aclosing(self._whole_turn(assembly or Assembly(), begin)) as events:
            async for event in events:
                yield event

    async def follow(self, turn_id: str, *, assembly: Assembly | None = None) -> AsyncGenerator[Event, None]:
        """Yield the events of a turn that has begun, beyond what `assembly` holds, up to its end; as `ask` does."""
        known = assembly or Assembly()
        known.turn_id = turn_id
        async with aclosing(self._whole_turn(known, {})) as events:
            async for event in events:
                yield event

    async def say(self, message: str, **how: Any) -> Assembly:
        """Send a message and return the whole reply; arguments and errors as for `ask`."""
        assembly = Assembly()
        async with aclosing(self.ask(message, assembly=assembly, **how)) as events:
            async for _ in events:
                pass
        assembly.whole()
        return assembly

    async def stop(self, turn_id: str) -> dict[str, Any]:
        """Stop a turn and return it as it ended; one that has ended stays as it is."""
        return await self._call("DELETE", f"/api/turns/{turn_id}")

    async def history(self, conversation_id: str, *, limit: int = 50, before: int = 0) -> dict[str, Any]:
        """Return the last messages of a conversation before seq `before` (0: the newest)."""
        return await self._call("GET", f"/api/conversations/{conversation_id}/history", limit=limit, before=before)

    async def conversations(self, *, limit: int = 50, offset: int = 0) -> dict[str, Any]:
        """Return this client's conversations, last used first."""
        return await self._call("GET", "/api/conversations", limit=limit, offset=offset)

    async def start_conversation(self, personality: str = "") -> dict[str, Any]:
        """Start a conversation and return it; one, however often it had to be asked for."""
        body = {"client_id": self.client_id, **({"personality": personality} if personality else {})}
        return await self._call("POST", "/api/conversations", json=body)

    async def personalities(self) -> dict[str, Any]:
        """Return who there is to talk to."""
        return await self._call("GET", "/api/personalities")

    async def info(self) -> dict[str, Any]:
        """Return what a node says about itself: its engines above all."""
        return await self._call("GET", "/")

    async def _call(self, method: str, path: str, *, json: object = None, **params: Any) -> dict[str, Any]:
        patience = Patience(self._patience_s)
        key = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        while True:
            url = self._nodes.current
            try:
                query = {"client_id": self.client_id, **params}
                asked = self._http.request(method, url + path, params=query, json=json, headers=key, timeout=self._timeout())
                response = await Watch(self._nodes, url).wait(asked)
                check(response)
                answer = dict(response.json())
            except (httpx.TransportError, ValueError, Away) as error:
                await self._away(url, error, patience)
            else:
                self._nodes.works(url)
                return answer

    async def _whole_turn(self, assembly: Assembly, begin: dict[str, Any]) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        patience, connection, healed, waits_since = Patience(self._patience_s), 0, False, loop.time()
        while True:
            connection, after, url = connection + 1, assembly.seq, self._nodes.current
            try:
                async with aclosing(self._events(url, assembly, begin)) as events:
                    async for event in events:
                        news = [] if event is None else assembly.take(event, over=connection)
                        if news is None:
                            break
                        if news or event is None:  # repeats are no sign of life: a node may send them for ever
                            patience.renew()
                            self._nodes.works(url)
                        for item in news:
                            if item.type == "piece" or item.type in TERMINAL:
                                self.seen.paused(assembly.turn_id, loop.time() - waits_since)
                            yield item
                            if item.type == "piece":  # how long the reader took is no pause of ours
                                waits_since = loop.time()
                        if assembly.end is not None:
                            return
                raise Away("the stream ended before the answer did")
            except BrokenPromise as broken:
                # Who resumes after a double failure can be ahead of the log (law 10): only from the start is certain.
                if after == 0 or healed or broken.what is Broken.SECOND_END:
                    raise
                healed = True
                yield assembly.start_over()
            except (httpx.TransportError, BadStream, Away) as error:
                turn_id = assembly.turn_id
                kept = (
                    f"The answer goes on by itself: it is {turn_id}." if turn_id else "The message may have been heard, or not."
                )
                await self._away(url, error, patience, turn_id, kept)

    async def _events(self, url: str, assembly: Assembly, begin: dict[str, Any]) -> AsyncGenerator[Event | None, None]:
        request, watch = dict(begin), Watch(self._nodes, url)
        if assembly.turn_id:
            params = {"after": assembly.seq, "attempt": assembly.attempt, "client_id": self.client_id}
            request = {"method": "GET", "url": f"/api/turns/{assembly.turn_id}/events", "params": params}
        request["url"] = url + request["url"]
        response = await watch.wait(self._http.send(self._http.build_request(**request, timeout=self._timeout()), stream=True))
        async with aclosing(response):
            if response.status_code != httpx.codes.OK:
                await watch.wait(response.aread())
                check(response)
            async with aclosing(watch.each(response.aiter_bytes())) as chunks:
                async for event in read_events(chunks):
                    yield event

    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self._silence_s, connect=CONNECT_S if len(self._nodes.urls) > 1 else CONNECT_ALONE_S)

    async def _away(self, url: str, error: Exception, patience: Patience, turn_id: str = "", aftermath: str = "") -> None:
        why = reason(error)
        self.seen.failed_requests += 1
        self._nodes.failed(url)
        self._on_lost(why)
        after_s = error.after_s if isinstance(error, Away) else 0.0
        await patience.wait(why, self._nodes.urls, after_s=after_s, turn_id=turn_id, aftermath=aftermath)
