"""The live side of the event bus: one pub/sub connection per process, shared by all its listeners.

Best effort by design: pub/sub may swallow any message, so a listener that needs everything reads the log whenever
`next` returns None. The connection has no read timeout and a PING of our own; a connection that says nothing for
`DEAD_AFTER_S` is dropped and made anew, and every listener is told that it may have missed something.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import orjson

from serve_app.chat.bus import Bus, Subscription
from serve_app.chat.events import parse_event
from serve_app.chat.inbox import Inbox
from serve_app.chat.meter import REDIS_RECONNECTS, UNMEASURED, Meter
from serve_app.state.connection import Connection, Redis, is_away, listening_connection
from serve_app.state.keys import CLIENT_CHANNEL

PING_EVERY_S = 1.0
DEAD_AFTER_S = 3.0
CONFIRM_WITHIN_S = 1.0
LINGER_S = 30.0
"""How long an unused subscription is kept: a client's next request costs no SUBSCRIBE."""

log = logging.getLogger(__name__)


class _Listener(Inbox):
    """One listener of a channel, to one turn or (empty) to all of them."""

    def __init__(self, turn_id: str) -> None:
        super().__init__()
        self.turn_id = turn_id


class _Channel:
    """A subscription of this process and who listens to it."""

    def __init__(self) -> None:
        self.listeners: set[_Listener] = set()
        self.confirmed = asyncio.Event()
        self.was_confirmed = False
        self.linger: asyncio.TimerHandle | None = None


class RedisBus(Bus):
    """Listens to clients' channels. Use as `async with`; the reading task lives exactly as long."""

    def __init__(self, redis: Redis, *, meter: Meter = UNMEASURED) -> None:
        """Listen on the Redis that `redis` talks to, over a connection of its own."""
        self._redis = redis
        self._meter = meter
        self._channels: dict[str, _Channel] = {}
        self._connection: Connection | None = None
        self._heard = 0.0
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "RedisBus":
        """Start listening; does not wait for Redis."""
        self._tasks = [asyncio.create_task(self._read_for_ever(), name="bus"), asyncio.create_task(self._ping(), name="bus-ping")]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        self._closing = True
        for channel in self._channels.values():
            if channel.linger:
                channel.linger.cancel()
        for task in self._tasks:
            task.cancel()
        await self._drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise if a task of the bus has died: a listener must never end silently."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                raise RuntimeError(f"The {task.get_name()} task has ended.") from task.exception()

    @contextlib.asynccontextmanager
    async def listen(self, client_id: str, *, turn_id: str = "") -> AsyncIterator[Subscription]:
        """See `Bus.listen`."""
        name = CLIENT_CHANNEL + client_id
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
            await self._send("SUBSCRIBE", name)
        if channel.linger:
            channel.linger.cancel()
            channel.linger = None
        listener = _Listener(turn_id)
        channel.listeners.add(listener)
        try:
            if not channel.confirmed.is_set():
                try:
                    async with asyncio.timeout(CONFIRM_WITHIN_S):
                        await channel.confirmed.wait()
                except TimeoutError:
                    channel.was_confirmed = True  # from here on something can be missed: the confirmation must say so
                    listener.miss()
            yield listener
        finally:
            channel.listeners.discard(listener)
            if not channel.listeners and self._channels.get(name) is channel:
                loop = asyncio.get_running_loop()
                channel.linger = loop.call_later(LINGER_S, self._forget, name)

    def _forget(self, name: str) -> None:
        channel = self._channels.get(name)
        if channel is not None and not channel.listeners:
            del self._channels[name]
            task = asyncio.ensure_future(self._unsubscribe(name))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    async def _unsubscribe(self, name: str) -> None:
        if name not in self._channels:  # else somebody has come since, and its SUBSCRIBE is on its way already
            await self._send("UNSUBSCRIBE", name)

    async def _send(self, *command: str) -> None:
        """Send if connected. A failure is the reader's to notice: after a reconnect it subscribes to all there is."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.send_command(*command)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    async def _read_for_ever(self) -> None:
        pause, there = 0.05, True
        while True:
            connection = listening_connection(self._redis)
            try:
                async with asyncio.timeout(DEAD_AFTER_S):  # a host that froze accepts connections and says nothing
                    await connection.connect()  # type: ignore[no-untyped-call]
                    self._heard = asyncio.get_running_loop().time()
                    self._connection = connection
                    for name in list(self._channels):
                        await connection.send_command("SUBSCRIBE", name)
                if not there:
                    log.warning("The event bus is connected again.")
                    self._meter.count(REDIS_RECONNECTS, "bus")
                    there = True
                pause = 0.05
                while True:
                    self._take(await connection.read_response(timeout=None))
            except Exception as error:
                if not is_away(error):
                    raise
                if there:
                    log.warning("The event bus lost its connection (%s); listeners read the log meanwhile.", type(error).__name__)
                    there = False
            finally:
                self._connection = None
                with contextlib.suppress(Exception):
                    await connection.disconnect()
            for channel in self._channels.values():
                channel.confirmed.clear()
            if self._closing:  # the client may swallow a cancellation while it sends, see `Scripts`
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    def _take(self, reply: list[bytes] | bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        if isinstance(reply, bytes):  # the answer to a PING while nothing is subscribed
            return
        kind, name = reply[0], reply[1]
        if kind == b"message":
            channel = self._channels.get(name.decode())
            if channel is not None and channel.listeners:
                self._deliver(channel, reply[2])
        elif kind == b"subscribe":
            channel = self._channels.get(name.decode())
            if channel is not None and not channel.confirmed.is_set():
                channel.confirmed.set()
                if channel.was_confirmed:  # a resubscription: what came meanwhile is lost to the listeners
                    for listener in channel.listeners:
                        listener.miss()
                channel.was_confirmed = True

    def _deliver(self, channel: _Channel, raw: bytes) -> None:
        try:
            data = orjson.loads(raw)
            turn_id = data[0]["turn_id"]
            wanting = [listener for listener in channel.listeners if not listener.turn_id or listener.turn_id == turn_id]
            batch = [parse_event(item) for item in data] if wanting else []
        except (ValueError, LookupError, TypeError):
            log.warning("A message on the bus is none of ours; listeners read the log.")
            wanting, batch = list(channel.listeners), []
        for listener in wanting:
            if batch:
                listener.put(batch)
            else:
                listener.miss()

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PING_EVERY_S)
            silent = loop.time() - self._heard
            if self._connection is not None and silent > DEAD_AFTER_S:
                log.warning("The event bus heard nothing for %.1f s; reconnecting.", silent)
                await self._drop()
            elif silent >= PING_EVERY_S:
                await self._send("PING", "")
