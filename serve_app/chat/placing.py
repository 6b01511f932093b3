"""Where a turn goes: which pool of the personality's chain, which model, which replica.

The chain is the operator's order of preference. Within a pool a replica comes first that holds the model in memory, then the one
that answered this conversation before (it has its beginning in the cache), then one of this node, then the least busy. A pool
whose replicas are all silent, failing or full is passed over, at no cost to the turn.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass

from serve_app.chat.background import Background
from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.personalities import PoolChoice
from serve_app.chat.replicas import ReplicaRecord, ReplicaStatus, ReplicaStore

LOOK_EVERY_S = 1.0
SHUN_S = 4.0
"""How long a replica that a call found dead or silent is not chosen: until its record would have ended by itself."""


@dataclass(frozen=True)
class Place:
    """Where a turn goes next. `replica` is empty where none is known: then Serve chooses, or waits for one to come.

    `full`: it waits there for another one to end. `spare_replica`: another replica of the pool could go on; `spare_pool`: another
    pool of the chain could.
    """

    choice: PoolChoice
    replica: str = ""
    full: bool = False
    spare_replica: bool = False
    spare_pool: bool = False


class Roster:
    """The replicas of all pools, as one router knows them. Use as `async with`: reads them once a second.

    While the store is away the replicas are no less there: what was read last holds.
    """

    def __init__(self, replicas: ReplicaStore | None, *, node: str = "", every_s: float = LOOK_EVERY_S) -> None:
        """Read from `replicas` (None: nothing is ever known) for the router of `node`."""
        self._replicas = replicas
        self._node = node
        self._every_s = every_s
        self._known: Sequence[ReplicaRecord] = ()
        self._sent: Counter[str] = Counter()
        self._shunned: dict[str, float] = {}
        self._reading = Background(self._read_for_ever, name="roster", died="The replicas are no longer looked for.")

    async def __aenter__(self) -> "Roster":
        """Read once, then once a second."""
        if self._replicas is not None:
            await self._read()
            self._reading.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop reading."""
        await self._reading.stop()

    def check(self) -> None:
        """Return if the reading goes on.

        Raises:
            RuntimeError: it has died, of a bug.
        """
        self._reading.check()

    def sent(self, replica: str) -> None:
        """Count a turn that is on its way to `replica`, or runs there, as a record is up to a second old."""
        if replica:
            self._sent[replica] += 1

    def returned(self, replica: str) -> None:
        """Count it no longer."""
        self._sent[replica] -= 1
        if self._sent[replica] <= 0:
            del self._sent[replica]

    def shun(self, replica: str) -> None:
        """Do not choose `replica` for a while: a call found it dead or silent."""
        if replica:
            self._shunned[replica] = asyncio.get_running_loop().time() + SHUN_S

    def place(
        self,
        chain: Sequence[PoolChoice],
        *,
        warm: str = "",
        failed: Container[str] = (),
        unfit: Container[str] = (),
        tried: int = 0,
    ) -> Place:
        """Return where a turn that `chain` may answer goes next.

        `warm` is the replica that answered its conversation before; `failed` are replicas and `unfit` pools that gave this turn
        up. Where no replica of the chain is known, the pools take turns, by how often it was `tried`: one may be starting.
        """
        able = [(choice, self._able(choice.pool, failed)) for choice in chain if choice.pool not in unfit]
        able = [(choice, replicas) for choice, replicas in able if replicas]
        if not able:
            left = [choice for choice in chain if choice.pool not in unfit] or list(chain)
            return Place(left[tried % len(left)])
        choice, replicas = next((each for each in able if not all(self._full(replica) for replica in each[1])), able[0])
        best = min(replicas, key=lambda replica: self._rank(replica, choice.model or replica.model, warm))
        return Place(
            choice,
            best.replica,
            full=self._full(best),
            spare_replica=len(replicas) > 1,
            spare_pool=any(other.pool != choice.pool for other, _ in able),
        )

    def _able(self, pool: str, failed: Container[str]) -> list[ReplicaRecord]:
        now = asyncio.get_running_loop().time()
        return [
            record
            for record in self._known
            if record.pool == pool
            and record.status is ReplicaStatus.READY
            and record.replica not in failed
            and self._shunned.get(record.replica, 0.0) <= now
        ]

    def _busy(self, record: ReplicaRecord) -> int:
        return max(record.busy, self._sent[record.replica])

    def _full(self, record: ReplicaRecord) -> bool:
        return 0 < record.slots <= self._busy(record)

    def _rank(self, record: ReplicaRecord, model: str, warm: str) -> tuple[bool, bool, bool, bool, int, float]:
        return (
            self._full(record),
            model not in record.models,
            record.replica != warm,
            record.node != self._node,
            self._busy(record),
            random.random(),  # several routers look at the same records: they shall not all take the same replica
        )

    async def _read(self) -> None:
        if self._replicas is not None:
            with contextlib.suppress(StoreUnavailable):
                self._known = await self._replicas.list()
        now = asyncio.get_running_loop().time()
        self._shunned = {replica: until for replica, until in self._shunned.items() if until > now}

    async def _read_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._read()
