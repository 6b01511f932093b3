"""Reading server-sent events: bytes in, a turn's events out."""

import json
from collections.abc import AsyncGenerator, AsyncIterable

from pydantic import ValidationError

from serve_app.chat.events import Event, parse_event

EVENT_BYTES = 16 * 1024 * 1024
"""Largest event that is believed; the largest real one is an end with the whole reply in it."""


class BadStream(Exception):
    """What came is no stream of a turn's events."""


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncGenerator[Event | None, None]:
    """Yield each event, and None for each comment: the server is still there.

    An event that was cut off is dropped, one of a kind that is not known yet is passed over. Lines end at line feeds only:
    text may hold U+2028 or U+0085, which Python's `splitlines` would take for ends of lines.

    Raises:
        BadStream: it is something else.
    """
    buffer, data = b"", b""
    async for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > EVENT_BYTES:
            raise BadStream("an event without an end")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b":"):
                yield None
            elif line.startswith(b"data:"):
                data += line[5:]
            elif not line and data:
                event, data = _decoded(data), b""
                yield event


def event_of(data: object) -> Event | None:
    """Return the event that a decoded JSON object describes; None if it is of a kind that is not known yet.

    Raises:
        BadStream: it is none.
    """
    try:
        return parse_event(data)
    except ValidationError as error:
        if any(problem["type"] == "union_tag_invalid" for problem in error.errors()):
            return None  # a newer server knows more events; those that make up the text never change
        raise BadStream("an event without its fields") from None


def _decoded(data: bytes) -> Event | None:
    try:
        return event_of(json.loads(data))
    except ValueError:
        raise BadStream("an event that is not JSON") from None
