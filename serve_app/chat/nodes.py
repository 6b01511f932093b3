"""The nodes that serve: each says so again and again, and each can name all of them.

Whoever asks a node may go to any other. A node that stops saying so is forgotten after `NODE_SECONDS`.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from serve_app.chat.background import Background, again_and_again

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
        self.status = NodeStatus.SERVING
        self.known: Sequence[NodeRecord] = ()
        """All nodes, this one included, as of a few seconds ago."""
        registering = partial(again_and_again, self._register, every_s=every_s)
        self._registering = Background(registering, name="node-presence", died="The registering of this node has ended.")

    async def __aenter__(self) -> "Presence":
        """Begin to register."""
        self._registering.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop registering; the record ends by itself."""
        await self._registering.stop()

    def check(self) -> None:
        """Return if the registering goes on.

        Raises:
            RuntimeError: it has died, of a bug.
        """
        self._registering.check()

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
