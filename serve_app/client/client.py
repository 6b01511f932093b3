"""Talking to Aurora over any of its nodes.

A message gets its idempotency key before it is sent, and is sent with it until somebody has kept it; from then on the
turn is followed from wherever the text stands, on the next node or the same again. What is yielded is yielded once.
"""

import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx

from serve_app.chat.events import Event
from serve_app.client.assembly import Assembly
from serve_app.client.promises import Broken, BrokenPromise
from serve_app.client.retry import Away, Patience, check
from serve_app.client.sse import BadStream, read_events

SILENCE_S = 20.0
"""The server says something at least every 15 s; a connection that is silent for longer is dead."""
CONNECT_S = 3.0


class AuroraClient:
    """One client of Aurora, over any number of nodes. Use as `async with`.

    Whatever it does is tried again, on the next node or the same, until no node has said anything for `patience_s`
    seconds. Every message is answered once, however often it had to be sent. Leaving an iteration, or the client, stops no
    answer: `stop` does.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        client_id: str,
        *,
        patience_s: float = 60.0,
        silence_s: float = SILENCE_S,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Ask the `nodes` (base URLs), the first one first; `on_lost` hears why whenever a node has to be asked again.

        Raises:
            ValueError: no node, or one that is no http:// or https:// URL.
        """
        if not nodes or not all(node.startswith(("http://", "https://")) for node in nodes):
            raise ValueError("Name the nodes as URLs, like http://127.0.0.1:8000.")
        self.client_id = client_id
        self._nodes = [node.rstrip("/") for node in nodes]
        self._at = 0
        self._patience_s = patience_s
        self._on_lost = on_lost
        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        self._http = httpx.AsyncClient(timeout=timeout, trust_env=False)

    async def __aenter__(self) -> "AuroraClient":
        """Open nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._http.aclose()

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
        """Start a conversation and return it. Where the first answer is lost, an empty one more may be left behind."""
        body = {"client_id": self.client_id, **({"personality": personality} if personality else {})}
        return await self._call("POST", "/api/conversations", json=body)

    async def personalities(self) -> dict[str, Any]:
        """Return who there is to talk to."""
        return await self._call("GET", "/api/personalities")

    async def info(self) -> dict[str, Any]:
        """Return what a node says about itself: its engines above all."""
        return await self._call("GET", "/")

    async def _call(self, method: str, path: str, *, json: object = None, **params: Any) -> dict[str, Any]:
        patience = Patience(self._patience_s, self._nodes)
        while True:
            try:
                query = {"client_id": self.client_id, **params}
                response = await self._http.request(method, self._nodes[self._at] + path, params=query, json=json)
                check(response)
                return dict(response.json())
            except (httpx.TransportError, ValueError, Away) as error:
                await self._away(error, patience)

    async def _whole_turn(self, assembly: Assembly, begin: dict[str, Any]) -> AsyncGenerator[Event, None]:
        patience, connection, healed = Patience(self._patience_s, self._nodes), 0, False
        while True:
            connection, after = connection + 1, assembly.seq
            try:
                async with aclosing(self._events(assembly, begin)) as events:
                    async for event in events:
                        news = [] if event is None else assembly.take(event, over=connection)
                        if news is None:
                            break
                        if news or event is None:  # repeats are no sign of life: a node may send them for ever
                            patience.renew()
                        for item in news:
                            yield item
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
                await self._away(error, patience, turn_id, kept)

    async def _events(self, assembly: Assembly, begin: dict[str, Any]) -> AsyncGenerator[Event | None, None]:
        request = dict(begin)
        if assembly.turn_id:
            params = {"after": assembly.seq, "attempt": assembly.attempt, "client_id": self.client_id}
            request = {"method": "GET", "url": f"/api/turns/{assembly.turn_id}/events", "params": params}
        request["url"] = self._nodes[self._at] + request["url"]
        async with self._http.stream(**request) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                check(response)
            async for event in read_events(response.aiter_bytes()):
                yield event

    async def _away(self, error: Exception, patience: Patience, turn_id: str = "", aftermath: str = "") -> None:
        why = (
            "no connection"
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            else str(error) or type(error).__name__
        )
        self._on_lost(why)
        self._at = (self._at + 1) % len(self._nodes)
        await patience.wait(why, after_s=error.after_s if isinstance(error, Away) else 0.0, turn_id=turn_id, aftermath=aftermath)
