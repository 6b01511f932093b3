"""A party that talks like a Sentinel and says what a test wants: one that lies, is behind, or leads through a proxy."""

import asyncio

from tests.support.redis_trio import NAME


class SentinelLiar:
    """Names `port` as the primary's, of a configuration numbered `epoch`. Use as `async with`."""

    def __init__(self, port: int, *, epoch: int = 99) -> None:
        self.named = port
        self.epoch = epoch
        self.asked = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"sentinel://127.0.0.1:{self.port}/{NAME}"

    async def __aenter__(self) -> "SentinelLiar":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while command := await _command(reader):
                assert command[0] == "SENTINEL"
                self.asked += 1
                answer = ["127.0.0.1", str(self.named)]
                if command[1] == "MASTER":
                    answer = ["name", command[2], "config-epoch", str(self.epoch)]
                writer.write(b"*%d\r\n" % len(answer) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a.encode()) for a in answer))
        finally:
            self._writers.discard(writer)
            writer.close()


async def _command(reader: asyncio.StreamReader) -> list[str]:
    """Read one command of the Redis protocol; empty at the end of the connection."""
    head = await reader.readline()
    words = []
    for _ in range(int(head[1:]) if head else 0):
        length = int((await reader.readline())[1:])
        words.append((await reader.readexactly(length + 2))[:-2].decode())
    return words
