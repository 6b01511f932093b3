"""What the tests of the API talk with: server-sent events read strictly, a WebSocket of JSON frames, and all that Redis holds."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import redis
from websockets.asyncio.client import ClientConnection, connect

from tests.support.redis_process import RedisProcess

Frame = dict[str, Any]
ENDS = ("done", "failed", "stopped")


@dataclass(frozen=True)
class Sse:
    """One server-sent event."""

    id: int
    event: str
    data: Frame


async def read_sse(response: httpx.Response) -> AsyncIterator[Sse]:
    """Yield the events of a stream; each must have exactly `id:`, `event:` and `data:`, comments aside."""
    assert response.status_code == 200, await response.aread()
    assert response.headers["content-type"].startswith("text/event-stream")
    block: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            block.append(line)
        elif block:
            assert [part.split(": ", 1)[0] for part in block] == ["id", "event", "data"], block
            found = [part.split(": ", 1)[1] for part in block]
            event = Sse(int(found[0]), found[1], json.loads(found[2]))
            assert event.event == event.data["type"]
            block = []
            yield event
    assert not block, "the stream ended within an event"


async def all_sse(client: httpx.AsyncClient, method: str, url: str, **kwargs: Any) -> list[Sse]:
    """Return the events of a whole stream."""
    async with client.stream(method, url, **kwargs) as response:
        return [event async for event in read_sse(response)]


def text_of(frames: Iterable[Frame]) -> str:
    """Assemble a reply as a client does: pieces in their order, each once, `rewind` obeyed."""
    pieces: list[str] = []
    for frame in frames:
        if frame["type"] == "piece":
            assert frame["seq"] == len(pieces) + 1, f"gap or repeat at {frame['seq']}"
            pieces.append(frame["text"])
        elif frame["type"] == "rewind":
            del pieces[frame["to_seq"] :]
    return "".join(pieces)


def check_whole(frames: Sequence[Frame]) -> str:
    """Check that these are the events of one whole turn, its one end last, as the receipt says; return the text."""
    assert [f["type"] for f in frames if f["type"] in ENDS] == [frames[-1]["type"]]
    assert len({f["turn_id"] for f in frames}) == 1
    text, end = text_of(frames), frames[-1]
    assert end["content"] == text
    assert end["receipt"] == {
        "pieces": max([f["seq"] for f in frames if f["type"] == "piece"], default=0),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return text


def check_error(error: Frame) -> Frame:
    """Check that this is an error as clients may see it; return it."""
    assert {"code", "message", "retryable"} <= set(error) <= {"code", "message", "retryable", "turn_id"}
    assert error["message"]
    assert isinstance(error["retryable"], bool)
    assert "Traceback" not in error["message"]
    return error


class Device:
    """One WebSocket connection of a client. Use as `async with`."""

    def __init__(self, base: str, client_id: str, *, query: str = "", **kwargs: Any) -> None:
        self._connecting = connect(f"{base.replace('http', 'ws', 1)}/ws/{client_id}{query}", **kwargs)
        self.socket: ClientConnection

    async def __aenter__(self) -> "Device":
        self.socket = await self._connecting
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def chat(self, message: str, **more: Any) -> None:
        await self.send(type="chat", message=message, **more)

    async def next(self, timeout: float = 10) -> Frame:
        """Return the next frame."""
        async with asyncio.timeout(timeout):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def until(self, *types: str, timeout: float = 20) -> list[Frame]:
        """Return the frames up to and with the first of one of `types`."""
        frames: list[Frame] = []
        async with asyncio.timeout(timeout):
            while not frames or frames[-1]["type"] not in types:
                frames.append(await self.next(timeout))
        return frames

    async def alive(self) -> list[Frame]:
        """Ping; return what came before the pong."""
        await self.send(type="ping")
        return (await self.until("pong"))[:-1]


def everything(server: RedisProcess, *, but: str = "aurora:sweep") -> dict[bytes, bytes]:
    """Return all that Redis holds, every key with its content; except the time of the last sweep."""
    with redis.Redis(port=server.port, protocol=2) as client:
        return {key: client.dump(key) for key in client.scan_iter() if key != but.encode()}


def paced(words: int, per_second: float) -> dict[str, float]:
    """Options for an answer of so many words at that speed."""
    return {"words": words, "words_per_second": per_second}
