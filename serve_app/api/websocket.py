"""One WebSocket connection: frames in, a client's turns out.

The mission's client gets one frame per answer, with `content` and `node`. Once a frame has asked with `"stream": true` or
`resume`, or the address with `?stream=true`, the connection gets every event. It sees all turns of its client, also those
begun elsewhere.
"""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from serve_app.api import errors, frames, wire
from serve_app.api.access import Access
from serve_app.api.feeds import Feeds
from serve_app.chat import ids
from serve_app.chat.bus import Subscription
from serve_app.chat.drain import GOODBYE_SPREAD_S
from serve_app.chat.errors import ChatError, InvalidRequest, StoreUnavailable, TurnNotFound
from serve_app.chat.events import Accepted, Event, is_end
from serve_app.chat.meter import CONNECTIONS, RESUMES, counted
from serve_app.chat.options import Options
from serve_app.chat.service import Ask, ChatService

log = logging.getLogger(__name__)

FRAME_BYTES = 256 * 1024
"""Largest frame; a 32 KB message may be six times as long in JSON escapes."""
FRAMES_PER_SECOND, FRAMES_AT_ONCE = 20.0, 60.0
FLOOD_LIMIT = 500
"""Dropped frames after which the connection is closed."""
COME_BACK = 1012
"""Close code of a node that is leaving ("service restart"): connect again, to any node, and resume."""
TOUCH_EVERY_S = 600.0
"""A live connection keeps its session alive (an hour without it ends one)."""

_REASON = 120
"""Longest reason of a close: the protocol gives it 123 bytes."""
_LEFT = (WebSocketDisconnect, RuntimeError, OSError)
"""How a leaving client shows in a send; Serve's proxies differ in it."""


_ON_PURPOSE = (1000, 1001)
"""Close codes of a client that leaves by itself. One without any, 1005, is also what uvicorn says of a connection that broke."""


class _Gone(Exception):
    """The client has left."""


class Connection:
    """A client's connection, from accept to close."""

    def __init__(self, socket: WebSocket, service: ChatService, access: Access) -> None:
        """Serve `socket` from `service`."""
        self._socket = socket
        self._service = service
        self._access = access
        self._client_id = ""
        self._streams = False
        self._feeds = Feeds()
        self._asked: set[str] = set()
        """Turns that were asked for here, by a client that cannot come back to them by itself, and have not ended yet."""
        self._ours = False
        """It is we who close the connection: whatever code comes back, the client does not leave on purpose."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._tokens = FRAMES_AT_ONCE
        self._refilled = 0.0
        self._dropped = 0

    async def serve(self, claimed: str, *, stream: bool) -> None:
        """Serve until the client leaves. Turns go on without it."""
        try:
            with counted(self._service.meter, CONNECTIONS, "websocket"):
                await self._serve(claimed, stream=stream)
        except _Gone as gone:
            log.debug("The client %s has left: %r", self._client_id, gone.__cause__)
        except ChatError as error:
            await self._refuse(error)
        except Exception:
            log.exception("Unhandled error in a connection.")
            await self._refuse(errors.Internal())
        finally:
            await self._close()

    async def _serve(self, claimed: str, *, stream: bool) -> None:
        await self._socket.accept()
        caller = await self._access.caller(self._socket, claimed)
        if not caller.client_id:
            raise InvalidRequest("client_id: must not be empty.")
        self._client_id, self._streams = caller.client_id, stream
        await self._service.touch_session(self._client_id, connected=True)
        async with self._service.listen(self._client_id) as live:
            await self._attach()
            self._spawn(self._watch(live))
            self._spawn(self._keep_session())
            self._spawn(self._leave())
            await self._read()

    async def _refuse(self, error: ChatError) -> None:
        """Say why, and close the connection."""
        with contextlib.suppress(_Gone):
            await self._send(frames.of_error(error))
            await self._end(errors.close_code_of(error.code), error.message)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, _Gone):
            log.error("A task of a connection failed.", exc_info=error)
            self._spawn(self._refuse(errors.Internal()))  # never leave a client waiting for what will not come

    # -- what comes in

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                if message.get("code") in _ON_PURPOSE and not self._ours:
                    for turn_id in list(self._asked):
                        self._settle(turn_id)
                return
            text = message.get("text")
            try:
                if not self._may_speak():
                    if self._dropped > FLOOD_LIMIT:
                        await self._end(errors.close_code_of(errors.TooManyFrames.code), "too many frames")
                        return
                    continue
                if text is None:
                    raise InvalidRequest("Frames are JSON text, not binary.")
                await self._take(text)
            except ChatError as error:
                await self._send(frames.of_error(error, frames.message_id(text)))
            except _Gone:
                raise
            except Exception:
                log.exception("Unhandled error in a frame.")
                await self._send(frames.of_error(errors.Internal(), frames.message_id(text)))

    def _may_speak(self) -> bool:
        """Count a frame against the flood limit; the first one that is too many gets an error frame."""
        loop = asyncio.get_running_loop()
        self._tokens = min(FRAMES_AT_ONCE, self._tokens + (loop.time() - self._refilled) * FRAMES_PER_SECOND)
        self._refilled = loop.time()
        if self._tokens >= FRAMES_AT_ONCE:
            self._dropped = 0  # it has been quiet for long enough
        if self._tokens >= 1:
            self._tokens -= 1
            return True
        self._dropped += 1
        if self._dropped == 1:
            raise errors.TooManyFrames()
        return False

    async def _take(self, text: str) -> None:
        if len(text) > FRAME_BYTES:
            raise errors.MessageTooLarge()
        try:
            frame = wire.Frame.validate_python(json.loads(text))
        except ValidationError as invalid:
            problems = invalid.errors()
            if any(problem["type"] == "message_too_large" for problem in problems):
                raise errors.MessageTooLarge() from None
            raise InvalidRequest(errors.say(problems)) from None
        except (ValueError, RecursionError):
            raise InvalidRequest("The frame is not JSON.") from None
        match frame:
            case wire.ChatFrame():
                await self._chat(frame)
            case wire.ResumeFrame():
                await self._resume(frame)
            case wire.StopFrame():
                await self._stop(frame)
            case wire.PingFrame():
                await self._send({"type": "pong", "node": self._service.node})

    async def _chat(self, frame: wire.ChatFrame) -> None:
        self._streams = self._streams or frame.stream
        ask = Ask(
            client_id=self._client_id,
            message=frame.message,
            personality=frame.personality or "",
            conversation_id=frame.conversation_id or "",
            idempotency_key=frame.message_id or "",
            options=frame.options or Options.model_construct(),
            undelivered=not (self._streams or frame.message_id),
        )
        turn_id = ids.new_turn_id()
        if ask.undelivered:
            self._asked.add(turn_id)
        feed = self._feeds.open(turn_id)  # before the turn begins: what is published meanwhile waits here
        try:
            begun = await self._service.begin(ask, turn_id=turn_id)
        except StoreUnavailable:
            if feed.heard:  # it has begun all the same, and its reply alone was lost
                self._follow(turn_id, stream=self._streams, feed=feed)
            else:
                self._feeds.forget(turn_id)
            raise
        except BaseException:
            self._feeds.forget(turn_id)  # it may have begun all the same: then it is one of somebody else's
            self._asked.discard(turn_id)
            raise
        if self._streams:
            accepted = self._service.accepted(begun, frame.message).model_dump()
            await self._send({**accepted, "message_id": frame.message_id} if frame.message_id else accepted)
        if begun.attached:
            self._feeds.close(turn_id, feed)
            self._follow(begun.turn_id, stream=self._streams)
        else:
            self._follow(turn_id, stream=self._streams, feed=feed, fresh=True)

    async def _resume(self, frame: wire.ResumeFrame) -> None:
        self._streams = True
        snapshot = await self._service.turn(frame.turn_id)
        self._access.check_turn(await self._access.caller(self._socket, self._client_id), snapshot.client_id)
        self._service.meter.count(RESUMES, "websocket")
        self._follow(frame.turn_id, stream=True, after=frame.after, attempt=frame.attempt)

    async def _stop(self, frame: wire.StopFrame) -> None:
        snapshot = await self._service.turn(frame.turn_id)
        self._access.check_turn(await self._access.caller(self._socket, self._client_id), snapshot.client_id)
        await self._service.stop(frame.turn_id)

    # -- what goes out

    async def _attach(self) -> None:
        """Follow what is open, and give what ended while who asked was away: a client of the mission's kind cannot resume."""
        owed = []
        for turn in await self._service.recent_turns(self._client_id):
            if turn.is_open:
                self._follow(turn.turn_id, stream=self._streams)
                continue
            self._feeds.known.add(turn.turn_id)
            if turn.undelivered and not self._streams:  # who streams can resume, and is told nothing unasked
                owed.append(turn.turn_id)
        if owed:
            self._spawn(self._give(owed))

    async def _give(self, turn_ids: list[str]) -> None:
        """Give the ends of turns one after the other: the oldest answer comes first."""
        for turn_id in turn_ids:
            await asyncio.wait([self._follow(turn_id, stream=False)])

    async def _watch(self, live: Subscription) -> None:
        """Hand live events to the turns they belong to, and notice turns that were begun elsewhere."""
        while True:
            batch = await live.next(3600.0)
            if batch is None:
                self._feeds.miss()
                with contextlib.suppress(StoreUnavailable):
                    for turn in await self._service.recent_turns(self._client_id):
                        if turn.turn_id not in self._feeds.known:
                            self._follow(turn.turn_id, stream=self._streams)
                continue
            turn_id = batch[0].turn_id
            if turn_id not in self._feeds.known:
                seen = isinstance(batch[0], Accepted)
                if seen and self._streams:
                    await self._send(batch[0].model_dump())
                self._follow(turn_id, stream=self._streams, fresh=seen)
            self._feeds.put(turn_id, batch)

    def _follow(
        self,
        turn_id: str,
        *,
        stream: bool,
        after: int = 0,
        attempt: int = 0,
        feed: Subscription | None = None,
        fresh: bool = False,
    ) -> asyncio.Task[None]:
        """Follow a turn from `after`, in the task returned; whoever followed it on this connection before, no longer does."""
        feed = feed or self._feeds.open(turn_id)
        events = self._service.follow_live(turn_id, feed, after=after, attempt=attempt, fresh=fresh)
        follower = self._spawn(self._pass_on(turn_id, feed, events, stream=stream))
        self._feeds.follow(turn_id, follower)
        return follower

    async def _pass_on(self, turn_id: str, feed: Subscription, live: AsyncGenerator[Event, None], *, stream: bool) -> None:
        try:
            async with aclosing(live) as events:
                async for event in events:
                    if stream or is_end(event):
                        await self._send(frames.of_event(event))
            if not stream or turn_id in self._asked:
                self._settle(turn_id)
        except TurnNotFound as error:
            self._asked.discard(turn_id)
            await self._send(frames.of_error(error))
        finally:
            self._feeds.close(turn_id, feed)

    def _settle(self, turn_id: str) -> None:
        """Note that the end of a turn is owed no more: a client that cannot resume was sent it, or has left on purpose."""
        self._asked.discard(turn_id)
        self._service.delivered(turn_id)

    async def _keep_session(self) -> None:
        while True:
            await asyncio.sleep(TOUCH_EVERY_S)
            with contextlib.suppress(StoreUnavailable):
                await self._service.touch_session(self._client_id)

    async def _leave(self) -> None:
        """Say good-bye when the node leaves; who came although it is leaving may stay until its time is up."""
        departure = self._service.departure
        may_stay = departure.leaving
        await departure.called()
        if may_stay:
            await asyncio.sleep(max(0.0, departure.time_left))
        await asyncio.sleep(random.uniform(0, GOODBYE_SPREAD_S))
        await self._send({"type": "goodbye", "reason": "draining", "node": self._service.node})
        await self._end(COME_BACK, "this node is leaving: connect again")

    async def _send(self, frame: dict[str, object]) -> None:
        text = orjson.dumps(frame).decode()
        async with self._sending:
            try:
                await self._socket.send_text(text)
            except _LEFT as error:
                raise _Gone() from error

    async def _end(self, code: int, reason: str) -> None:
        self._ours = True
        try:
            await self._socket.close(code, reason[:_REASON])
        except _LEFT as error:
            raise _Gone() from error
