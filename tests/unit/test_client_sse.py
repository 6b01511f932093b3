"""Reading a stream of events: nothing is invented, nothing is lost, however the bytes come."""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.events import Piece
from serve_app.client.sse import BadStream, read_events


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
async def test_events_are_read_however_the_bytes_are_cut(size: int) -> None:
    wire = (
        ': hello\r\n\r\nid: 0\ndata: {"type":"new kind","turn_id":"t"}\n\n'
        'id: 1\ndata: {"type":"piece","turn_id":"t",\ndata: "seq":1,"attempt":1,"text":"é\u2028"}\n\ndata: {"type":'
    ).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(wire), size):
            yield wire[at : at + size]

    heard = [event async for event in read_events(chunks())]

    assert heard == [None, None, Piece(turn_id="t", seq=1, attempt=1, text="é\u2028")]


@pytest.mark.parametrize("junk", [b"data: <html>\n\n", b'data: {"type":"piece"}\n\n'])
async def test_a_stream_of_something_else_is_refused(junk: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield junk

    with pytest.raises(BadStream):
        await anext(read_events(chunks()))
