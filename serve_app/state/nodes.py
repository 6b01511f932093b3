"""The records of nodes and of replicas in Redis. Knows nothing of what they do."""

import contextlib
from collections.abc import Sequence

from pydantic import ValidationError

from serve_app.chat.nodes import NODE_SECONDS, NodeRecord, NodeStore
from serve_app.chat.replicas import REPLICA_SECONDS, ReplicaRecord, ReplicaStore
from serve_app.state.scripts import Scripts


class RedisNodes(NodeStore):
    """Keeps the records of the nodes in Redis, shared by every node."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def register(self, record: NodeRecord) -> None:
        """See `NodeStore.register`."""
        await self._scripts.run("register", "node", record.node, record.model_dump_json(), NODE_SECONDS)

    async def list(self) -> Sequence[NodeRecord]:
        """See `NodeStore.list`."""
        found = []
        for raw in await self._scripts.run("registered", "node"):
            with contextlib.suppress(ValidationError):  # of a newer release, which says more than this one knows
                found.append(NodeRecord.model_validate_json(raw))
        return sorted(found, key=lambda record: record.node)


class RedisReplicas(ReplicaStore):
    """Keeps the records of the replicas in Redis. Tries once: the next second brings the next record."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def register(self, record: ReplicaRecord) -> None:
        """See `ReplicaStore.register`."""
        facts = (record.replica, record.model_dump_json(), REPLICA_SECONDS)
        await self._scripts.run("register", "replica", *facts, patience_s=0)

    async def leave(self, replica: str) -> None:
        """See `ReplicaStore.leave`."""
        await self._scripts.run("register", "replica", replica, "", 0, patience_s=0)

    async def list(self) -> Sequence[ReplicaRecord]:
        """See `ReplicaStore.list`."""
        found = []
        for raw in await self._scripts.run("registered", "replica", patience_s=0):
            with contextlib.suppress(ValidationError):  # of a newer release, which says more than this one knows
                found.append(ReplicaRecord.model_validate_json(raw))
        return sorted(found, key=lambda record: (record.pool, record.node, record.replica))
