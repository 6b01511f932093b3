"""The records of the nodes in Redis. Knows nothing of what a node does."""

import contextlib
from collections.abc import Sequence

from pydantic import ValidationError

from serve_app.chat.nodes import NodeRecord, NodeStore
from serve_app.state.scripts import Scripts


class RedisNodes(NodeStore):
    """Keeps the records of the nodes in Redis, shared by every node."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def register(self, record: NodeRecord) -> None:
        """See `NodeStore.register`."""
        await self._scripts.run("node", record.node, record.model_dump_json())

    async def list(self) -> Sequence[NodeRecord]:
        """See `NodeStore.list`."""
        found = []
        for raw in await self._scripts.run("nodes"):
            with contextlib.suppress(ValidationError):  # of a newer release, which says more than this one knows
                found.append(NodeRecord.model_validate_json(raw))
        return sorted(found, key=lambda record: record.node)
