"""A WebSocket device without the client library: it goes to the next door when its connection breaks, and goes on there."""

import asyncio
import contextlib
import uuid

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from serve_app.chat.events import End, parse_event
from tests.drills.clients.ear import Ear, fail, now

_PAUSE_S = 0.2
_LOST = (WebSocketException, OSError, TimeoutError)


class WebSocketDevice:
    """One device of a client, connected all the time, to one door after the other. Use as `async with`.

    It names its turn and the last piece when it comes back (`resume`): a turn that has ended meanwhile is told to nobody who
    does not ask for it. One that only listens, and has not heard of a turn yet, says `?stream=true` and is sent whatever is
    open, from the start.
    """

    def __init__(self, urls: dict[str, str], doors: list[str], client_id: str, *, asks: bool) -> None:
        """Connect as `client_id` to `doors`, whose URLs are in `urls`."""
        self._urls, self._doors, self._client_id, self._asks = urls, list(doors), client_id, asks
        self._ear: Ear | None = None
        self._message_id = ""
        self._link = 0
        self._new = True
        """Nothing has come over this connection yet."""
        self._resumes = False
        """This connection began with its own frame, and not with whatever is open."""
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> "WebSocketDevice":
        """Begin to connect."""
        self._task = asyncio.create_task(self._stay())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def ask(self, ear: Ear) -> None:
        """Ask over this device, and listen to the end."""
        self._message_id = uuid.uuid4().hex
        self.listen(ear)
        if self._socket is not None:
            with contextlib.suppress(*_LOST):  # then it is lost, and asks again when it is back
                await self._begin(self._socket, ear)
        await self.heard(ear, ear.deadline() - now())

    def listen(self, ear: Ear) -> None:
        """Write down in `ear` from now on what comes."""
        self._ear = ear
        if self._socket is not None:
            self._link = ear.connect(self._doors[0])

    async def heard(self, ear: Ear, seconds: float) -> None:
        """Return when the device has heard the end, or gives up after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await ear.done.wait()
        ear.give_up()

    async def _stay(self) -> None:
        while True:
            why: object = "not connected"
            try:
                async with self._connecting() as socket:
                    await self._welcome(socket)
                    async for text in socket:
                        await self._take(socket, orjson.loads(text))
                    why = f"closed: {socket.close_code} {socket.close_reason}"
            except _LOST as error:
                why = error
            finally:
                self._socket = None
            self._leave(why)
            self._doors = self._doors[1:] + self._doors[:1]
            await asyncio.sleep(_PAUSE_S)

    def _connecting(self) -> connect:
        self._resumes = self._asks or self._left_a_turn()
        query = "" if self._resumes else "?stream=true"
        address = f"{self._urls[self._doors[0]].replace('http', 'ws', 1)}/ws/{self._client_id}{query}"
        return connect(
            address, open_timeout=2, close_timeout=0.5, ping_interval=1, ping_timeout=1.5, compression=None, proxy=None
        )

    def _left_a_turn(self) -> bool:
        """Whether a turn was heard of whose end was not."""
        return self._ear is not None and self._ear.open and self._ear.turn_id != ""

    async def _welcome(self, socket: ClientConnection) -> None:
        if self._resumes and not self._asks and not self._left_a_turn():
            await socket.close()  # it was given up meanwhile: the next connection streams from its beginning
            return
        self._socket, self._new, ear = socket, True, self._ear
        if ear is not None and ear.open:
            self._link = ear.connect(self._doors[0], after=ear.seq if self._resumes else 0)
            if self._resumes:
                await self._begin(socket, ear)

    async def _begin(self, socket: ClientConnection, ear: Ear) -> None:
        frame: dict[str, object] = {"type": "resume", "turn_id": ear.turn_id, "after": ear.seq, "attempt": ear.attempt}
        if not ear.turn_id:
            asked = ear.asked
            frame = {"type": "chat", "message": asked.message, "personality": asked.personality, "options": asked.options}
            frame |= {"stream": True, "message_id": self._message_id}
        await socket.send(orjson.dumps(frame).decode())

    async def _take(self, socket: ClientConnection, frame: dict[str, object]) -> None:
        ear = self._ear
        if ear is None or frame["type"] == "pong":
            return
        error = frame.get("error")
        if isinstance(error, dict):
            fail(ear.asked, self._doors[0], f"{error['code']}: {error['message']}")
            if self._resumes and ear.open:
                if error["retryable"]:
                    await asyncio.sleep(_PAUSE_S)
                    await self._begin(socket, ear)
                else:
                    ear.give_up()
        elif frame.get("turn_id") == (ear.turn_id or frame.get("turn_id")):
            event = parse_event(frame)
            if self._resumes and isinstance(event, End) and event.receipt.pieces > ear.seq and self._new:
                # A device that says nothing of streaming when it connects is told the end as a whole: it came before our frame.
                ear.turn_id = event.turn_id
                await self._begin(socket, ear)
            else:
                ear.hear(event, self._link)
            self._new = False

    def _leave(self, why: object) -> None:
        ear = self._ear
        if ear is not None and ear.open:
            if ear.device.links:
                ear.lose(self._link, why)
            fail(ear.asked, self._doors[0], why)
