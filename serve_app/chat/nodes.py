"""The nodes that serve: each says so again and again, and each can name all of them.

Whoever asks a node may go to any other. A node that stops saying so is forgotten after `NODE_SECONDS`.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from serve_app.chat.errors import StoreUnavailable

REGISTER_EVERY_S = 3.0
NODE_SECONDS = 10
"""How long a node is named without a word from it; three times as long as it is silent when well."""


class NodeStatus(StrEnum):
    """What a node is up to."""

    SERVING = "serving"
    DRAINING = "draining"
    """It finishes what it has and wants no new work."""


class NodeRecord(BaseModel):
    """A node and where clients reach it: `url` is a base URL."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node: str
    url: str
    status: NodeStatus = NodeStatus.SERVING


class NodeStore(Protocol):
    """The records of all nodes, shared by every node."""

    async def register(self, record: NodeRecord) -> None:
        """Keep `record` for `NODE_SECONDS`, in place of the node's former one.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        ...

    async def list(self) -> Sequence[NodeRecord]:
        """Return the records that are kept, in the order of their names.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        ...


class Presence:
    """This node among the others. Use as `async with`; registers while it is entered.

    `known` stays as it was last read while the store is away: the nodes are no less there for it.
    """

    def __init__(self, nodes: NodeStore, *, node: str, url: str = "", every_s: float = REGISTER_EVERY_S) -> None:
        """Speak for `node`, reached at `url`; without a `url` it is not advertised, and knows the others all the same."""
        self._nodes = nodes
        self._node = node
        self._url = url
        self._every_s = every_s
        self.status = NodeStatus.SERVING
        self.known: Sequence[NodeRecord] = ()
        """All nodes, this one included, as of a few seconds ago."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Presence":
        """Begin to register."""
        self._task = asyncio.create_task(self._register_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop registering; the record ends by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> None:
        """Return if the registering goes on.

        Raises:
            RuntimeError: it has died, of a bug.
        """
        if self._task is not None and self._task.done():
            raise RuntimeError("The registering of this node has ended.") from self._task.exception()

    async def say(self, status: NodeStatus) -> None:
        """Take this status from now on, and tell the others at once.

        Raises:
            StoreUnavailable: they could not be told yet; they are within `REGISTER_EVERY_S` of the store's return.
        """
        self.status = status
        await self._register()

    async def _register(self) -> None:
        if self._url:
            await self._nodes.register(NodeRecord(node=self._node, url=self._url, status=self.status))
        self.known = await self._nodes.list()

    async def _register_for_ever(self) -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self._register()
            await asyncio.sleep(self._every_s)
