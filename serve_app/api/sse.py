"""Server-sent events (WHATWG HTML, section 9.2): `id:` is the last seq so far, `event:` the type, `data:` the event."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse

from serve_app.chat.drain import GOODBYE_SPREAD_S, Departure
from serve_app.chat.events import Event, Piece, Rewind, is_end
from serve_app.chat.meter import CONNECTIONS, Meter, counted

HEARTBEAT_S = 8.0
"""A comment after so much silence keeps proxies and phones from giving up. Looked at whenever the log is read in vain."""
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


async def respond(batches: AsyncGenerator[list[Event], None], meter: Meter, departure: Departure, *, after: int = 0) -> Response:
    """Return a response that streams events, once the first ones are there: what fails before still has its status.

    When the time of a node that is leaving is up, the stream ends after a comment, without an end of its turn: resume it.
    """
    first = await anext(batches)
    stream = _stream(first, batches, meter, departure, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)


async def _stream(
    batch: list[Event], batches: AsyncGenerator[list[Event], None], meter: Meter, departure: Departure, last: int
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    lingers_s = random.uniform(0, GOODBYE_SPREAD_S)
    async with aclosing(batches):
        with counted(meter, CONNECTIONS, "sse"):
            while True:
                chunks = []
                for event in batch:
                    last = _seq(event, last)
                    chunks.append(encode(event, last))
                if chunks or loop.time() - spoke > HEARTBEAT_S:
                    yield b"".join(chunks) or b": still here\n\n"
                    spoke = loop.time()
                if batch and is_end(batch[-1]):
                    return
                if departure.time_left < -lingers_s:
                    yield b": goodbye, this node is leaving\n\n"
                    return
                batch = await anext(batches)
