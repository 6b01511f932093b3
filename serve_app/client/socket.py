"""One device of a client: a WebSocket over which all of its turns come, whichever node it leads to.

When the connection dies, goes silent, or is closed with "come back" (1012), the next one is made to another node and goes
on where this one stopped. What was asked and not yet accepted is asked again under the same id, and answered once.
"""

import asyncio
import contextlib
import json
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from serve_app.chat.events import Event
from serve_app.client.assembly import Assembly
from serve_app.client.nodes import Nodes
from serve_app.client.retry import LONGEST_PAUSE_S, Away, Patience, RequestRefused, is_final, reason, refusal_of
from serve_app.client.seen import Seen
from serve_app.client.sse import EVENT_BYTES, BadStream
from serve_app.client.turns import Turns
from serve_app.client.watch import Watch

PING_EVERY_S, PONG_WITHIN_S = 1.5, 2.0
"""A node that is frozen or cut off is noticed after 3.5 s, however little there is to say."""
OPEN_WITHIN_S = 2.0
CLOSE_WITHIN_S = 0.5
"""A node that does not answer pings will not say good-bye either."""
FINAL_CODES = range(4500, 5000)
"""Close codes that say: do not connect again."""


class AuroraSocket:
    """One device of a client of Aurora, over any number of nodes. Use as `async with`, and read `events`.

    It hears of every turn of its client, also those begun elsewhere, each from its beginning; a turn that began *and* ended
    while it had no connection is in the history only. What was not read yet waits in memory. `AuroraClient` does what is
    not about live answers: history, stopping, conversations.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        client_id: str,
        *,
        patience_s: float = 60.0,
        explore: bool = True,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Connect to the `nodes` (base URLs); arguments and errors as for `AuroraClient`."""
        self.client_id = client_id
        self.seen = Seen()
        self._patience_s = patience_s
        self._explore = explore
        self._on_lost = on_lost
        self._http = httpx.AsyncClient(trust_env=False)
        self._nodes = Nodes(nodes, self._http, self.seen)
        self._turns = Turns(self.seen)
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._asked: dict[str, tuple[str, asyncio.Future[str]]] = {}
        self._socket: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "AuroraSocket":
        """Begin to connect."""
        self._running = asyncio.create_task(self._run())
        self._running.add_done_callback(self._ended)
        self._tasks = [self._running]
        if self._explore:
            self._tasks.append(asyncio.create_task(self._nodes.keep_up()))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection. No answer is stopped by that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    @property
    def nodes(self) -> list[str]:
        """The nodes it knows now, as base URLs."""
        return self._nodes.urls

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._socket is not None

    @property
    def assemblies(self) -> OrderedDict[str, Assembly]:
        """What is known of each turn, by its id: all that are open, and the latest of those that have ended."""
        return self._turns.assemblies

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events of all turns as they come: each piece once, no gap, takeovers and rewinds in their place.

        Raises:
            NobodyAnswers: for longer than the client is patient.
            RequestRefused: Aurora does not want this client, or no longer knows a turn that was open.
            BrokenPromise: what came of a turn is provably not its reply.
        """
        while (event := await self._events.get()) is not None:
            yield event
        self._check_running()

    async def ask(
        self,
        message: str,
        *,
        personality: str = "",
        conversation_id: str = "",
        options: dict[str, object] | None = None,
    ) -> str:
        """Send a message; return the id of its turn once the message is kept. Its events come with the others.

        Raises:
            RequestRefused: nothing was stored, and trying again changes nothing.
            NobodyAnswers, BrokenPromise: see `events`; the message may have been kept, or not.
        """
        self._check_running()
        message_id = uuid.uuid4().hex
        given = {"personality": personality, "conversation_id": conversation_id, "options": options}
        chat = {"type": "chat", "message": message, "message_id": message_id, "stream": True}
        frame = json.dumps(chat | {name: value for name, value in given.items() if value})
        kept: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[message_id] = (frame, kept)
        try:
            if self._socket is not None:
                with contextlib.suppress(OSError, WebSocketException):  # the next connection sends it again
                    await self._socket.send(frame)
            return await kept
        finally:
            self._asked.pop(message_id, None)

    def _check_running(self) -> None:
        if self._running.done() and not self._running.cancelled():
            self._running.result()

    def _ended(self, running: asyncio.Task[None]) -> None:
        """Tell whoever waits that nothing more comes, and why."""
        self._events.put_nowait(None)
        error = None if running.cancelled() else running.exception()
        for _, kept in self._asked.values():
            if error is None:
                kept.cancel()
            elif not kept.done():
                kept.set_exception(error)

    async def _run(self) -> None:
        patience, loop = Patience(self._patience_s), asyncio.get_running_loop()
        while True:
            url, began = self._nodes.current, loop.time()
            try:
                await self._converse(url, patience)
            except (OSError, WebSocketException, BadStream, Away) as error:
                if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in FINAL_CODES:
                    raise RequestRefused("refused", error.rcvd.reason) from None
                if loop.time() - began > OPEN_WITHIN_S + LONGEST_PAUSE_S:
                    patience.renew()  # it was there, however little it had to say
                self.seen.failed_requests += 1
                self._nodes.failed(url)
                self._on_lost(reason(error))
                after_s = error.after_s if isinstance(error, Away) else 0.0
                await patience.wait(reason(error), self._nodes.urls, after_s=after_s)

    async def _converse(self, url: str, patience: Patience) -> None:
        async with connect(
            f"{url.replace('http', 'ws', 1)}/ws/{self.client_id}?stream=true",
            open_timeout=OPEN_WITHIN_S,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_WITHIN_S,
            close_timeout=CLOSE_WITHIN_S,
            max_size=EVENT_BYTES,
            compression=None,
            proxy=None,
        ) as socket:
            watch = Watch(self._nodes, url)
            self._socket, again = socket, list(self._asked.values())
            try:
                for frame in self._turns.reconnected():
                    await socket.send(json.dumps(frame))
                for chat, _ in again:
                    await socket.send(chat)
                while True:
                    # A node that lives but has lost its Redis answers pings: where something is due, silence is looked into.
                    due = self._asked or self._turns.any_open
                    if self._take(await (watch.wait(socket.recv()) if due else socket.recv())):
                        patience.renew()
                        self._nodes.works(url)
            finally:
                self._socket = None

    def _take(self, text: str | bytes) -> bool:
        """Pass on what is in a frame, and say whether there was any news."""
        try:
            frame = json.loads(text)
            _, kept = self._asked.get(frame.get("message_id", ""), ("", None))
            if frame["type"] == "error":
                return self._refused(refusal_of(frame), kept)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadStream("a frame that is not Aurora's") from None
        news = self._turns.take(frame)
        for event in news:
            self._events.put_nowait(event)
        if frame["type"] == "accepted" and kept is not None and not kept.done():
            kept.set_result(frame["turn_id"])
        if self._turns.torn:
            raise Away(self._turns.torn)
        return bool(news)

    def _refused(self, refused: RequestRefused, kept: asyncio.Future[str] | None) -> bool:
        if not is_final(refused):
            raise Away(f"{refused.code}: {refused.message}")  # everything is asked again over the next connection
        if kept is not None:
            if not kept.done():
                kept.set_exception(refused)
            return False
        news = self._turns.refused(refused)
        if not news:
            raise refused
        for event in news:  # of this turn alone; the others go on
            self._events.put_nowait(event)
        return True
