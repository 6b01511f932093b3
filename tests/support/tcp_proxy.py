"""A TCP proxy between a client and Redis that can swallow, stall and cut what passes."""

import asyncio
import contextlib
from collections.abc import Callable


class TcpProxy:
    """Forwards to `port`. `swallow` sees each chunk that comes from Redis and says which bytes go on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.swallow: Callable[[bytes], bytes] = lambda chunk: chunk
        self.swallowed = 0
        self.accepted = 0
        self.delay_s = 0.0
        """How much later everything from the target comes: a distance."""
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> "TcpProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._open.set()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Nothing passes any more, and nobody is told: a half-open connection."""
        self._open.clear()

    def flow(self) -> None:
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers |= {writer, up_writer}
            await asyncio.gather(self._pump(reader, up_writer, False), self._pump(up_reader, writer, True))
        self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65_536):
                await self._open.wait()
                if down:
                    await asyncio.sleep(self.delay_s)
                    passed = self.swallow(chunk)
                    self.swallowed += len(chunk) - len(passed)
                    chunk = passed
                if chunk:
                    writer.write(chunk)
                    await writer.drain()
        writer.close()
        self._writers.discard(writer)
