"""Several nodes in one process over one Redis, each behind a door that tests can shut, freeze and slow down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from tests.support.redis_process import free_port
from tests.support.stack import Stack
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until


class Door(TcpProxy):
    """A proxy on a port of its own choice, so that it can go and come back."""

    def __init__(self, target: int, port: int) -> None:
        super().__init__(target)
        self.port = port

    async def __aenter__(self) -> "Door":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def kill(self) -> None:
        """Break every connection and refuse new ones: what a dead machine's neighbours see."""
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def freeze(self) -> None:
        """Take connections and bytes, and say nothing: a process that is stopped, or a network that swallows everything."""
        self.stall()


class Node:
    """A node: its stack, and the door through which it is reached."""

    def __init__(self, stack: Stack, door: Door) -> None:
        self.stack = stack
        self.door = door

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.door.port}"


@contextlib.asynccontextmanager
async def cluster(redis_url: str, names: Sequence[str] = ("aurora", "star", "vengeance")) -> AsyncIterator[list[Node]]:
    """Serve from these nodes; each knows all of them when this is entered."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for name in names:
            port = free_port()
            node = await stack.enter_async_context(Stack(redis_url, node=name))
            await stack.enter_async_context(node.serving(advertise=f"http://127.0.0.1:{port}"))
            nodes.append(Node(node, await stack.enter_async_context(Door(node.port, port))))
        await until(lambda: all(len(node.stack.presence.known) == len(nodes) for node in nodes), 10)
        yield nodes
