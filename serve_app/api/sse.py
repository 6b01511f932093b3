"""Server-sent events (WHATWG HTML, section 9.2): `id:` is the last seq so far, `event:` the type, `data:` the event."""

import asyncio
from collections.abc import AsyncGenerator

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from serve_app.chat.events import Event, Piece, Rewind, is_end

HEARTBEAT_S = 15.0
"""A comment after so much silence keeps proxies and phones from giving up."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second asks nginx not to buffer."""


def encode(event: Event, last: int) -> bytes:
    """Return `event` as one server-sent event after piece `last`."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (last, event.type.encode(), orjson.dumps(event.model_dump()))


def _seq(event: Event, last: int) -> int:
    match event:
        case Piece():
            return event.seq
        case Rewind():
            return event.to_seq
        case _:
            return last


async def respond(events: AsyncGenerator[Event, None], *, after: int = 0) -> Response:
    """Return a response that streams `events`, once the first one is there: what fails before still has its status."""
    first = await anext(events)
    return StreamingResponse(_stream(first, events, after), media_type="text/event-stream", headers=_HEADERS)


async def _stream(first: Event, events: AsyncGenerator[Event, None], last: int) -> AsyncGenerator[bytes, None]:
    event: Event = first
    pending: asyncio.Future[Event] | None = None
    try:
        while True:
            last = _seq(event, last)
            yield encode(event, last)
            if is_end(event):
                return
            pending = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait({pending}, timeout=HEARTBEAT_S))[0]:
                yield b": still here\n\n"
            event = pending.result()
    except StopAsyncIteration:
        return
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            await asyncio.wait({pending})
        await events.aclose()
