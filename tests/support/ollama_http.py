"""As much of an HTTP/1.1 server as the stand-ins for engines need, and no less of a real one: sockets, keep-alive, chunks.

Written by hand because its faults are the point: to close a connection in the middle of a line, to say nothing for ever, and to
notice at once that a client has gone.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any


class Gone(Exception):
    """The connection is over: the client left, or the server broke it on purpose."""


class Exchange:
    """One request, and the way to answer it."""

    stream_type = "application/x-ndjson"
    """What a stream says that it is."""
    chunk_bytes = 0
    """Bytes in a chunk of a stream; 0: all that is sent together."""

    def __init__(
        self, method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str], writer: asyncio.StreamWriter
    ) -> None:
        self.method, self.path, self.body, self.headers = method, path, body, headers
        self._writer = writer
        self._streaming = False

    async def answer(self, document: object, status: int = 200) -> None:
        """Send one JSON document."""
        await self._send(
            _head(status, "application/json; charset=utf-8", f"Content-Length: {len(_line(document))}"), _line(document)
        )

    async def fail(self, status: int, error: str) -> None:
        """Send an error, in Ollama's form."""
        await self.answer({"error": error}, status)

    async def line(self, document: object) -> None:
        """Send one line of a stream of JSON."""
        await self.raw(_line(document) + b"\n")

    async def raw(self, data: bytes) -> None:
        """Send a stretch of a stream, whatever is in it: one chunk, or those that `chunk_bytes` makes of it."""
        head = b"" if self._streaming else _head(200, self.stream_type, "Transfer-Encoding: chunked")
        self._streaming = True
        size = self.chunk_bytes or len(data)
        for at in range(0, len(data), size):
            chunk = data[at : at + size]
            if _in_a_character(chunk):
                await _others_read()
            await self._send(head, b"%x\r\n%s\r\n" % (len(chunk), chunk))
            head = b""

    async def end(self) -> None:
        """End a stream."""
        await self._send(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Cut the connection, as a process that dies does."""
        self._writer.transport.abort()
        raise Gone

    async def _send(self, *data: bytes) -> None:
        self._writer.write(b"".join(data))
        await self._writer.drain()


def _in_a_character(chunk: bytes) -> bool:
    """Say whether `chunk` begins in the middle of a character of UTF-8."""
    return 0x80 <= chunk[0] < 0xC0


async def _others_read() -> None:
    """Let a client on this loop read what was sent so far by itself: in the first round it reads, in the second it is told."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def _line(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def _head(status: int, kind: str, length: str) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode()


class HttpServer:
    """Serves `handle` on a socket. A handler whose client leaves is cancelled at once."""

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._handle, self._host, self._port = handle, host, port
        self._server: asyncio.Server | None = None
        self.accepted = 0
        """Connections so far."""
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]  # the same one, should it start again

    async def kill(self) -> None:
        """Be gone, as a killed process is: every connection is reset, and nobody listens any more."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        self.accepted += 1
        try:
            early = b""
            while (request := await _read(early, reader, writer)) is not None:
                early = await self._serve(request, reader)
        except (Gone, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # nobody awaits a connection's task; all that is left to do is to end it
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _serve(self, request: Exchange, reader: asyncio.StreamReader) -> bytes:
        """Handle `request`, unless its client leaves first; return what came early of the next one."""
        work, left = asyncio.ensure_future(self._handle(request)), asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done() and not left.result():
                raise Gone
            await work
            return left.result() if left.done() else b""
        finally:
            work.cancel()
            left.cancel()
            with contextlib.suppress(Gone, ConnectionError):
                await asyncio.gather(work, return_exceptions=True)


async def _read(early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    """Return the next request of a connection, or nothing where there is none."""
    first = early + await reader.readline()
    if not first.strip():
        return None
    method, path, _ = first.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (header := (await reader.readline()).decode().strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Exchange(method, path.partition("?")[0], json.loads(body) if body else {}, headers, writer)
