"""The replicas of all pools: each says once a second how it is, and every router knows them all.

Serve knows which replicas there are, and takes up to a minute to notice that a machine is gone; a router must know within
seconds, without asking anybody, and also what a replica holds loaded and how busy it is. So the replicas say so in the store,
and who is silent for `REPLICA_SECONDS` is not there: a machine that sleeps costs no turn a timeout.
"""

import contextlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from serve_app.chat.background import Background, again_and_again
from serve_app.chat.errors import StoreUnavailable

REGISTER_EVERY_S = 1.0
REPLICA_SECONDS = 4
"""How long a replica is known without a word from it."""


class ReplicaStatus(StrEnum):
    """What a replica of a pool is up to."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """Its node was told to leave: it finishes what it has."""
    FAILING = "failing"
    """Its engine cannot generate now."""


class ReplicaRecord(BaseModel):
    """A replica of a pool, as it told itself a second ago. `models`, `busy`, `slots`, `note`: see `EngineStatus`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    replica: str = Field(description="Serve's id of the replica.", examples=["k3v9x2ab"])
    pool: str = Field(description="Its pool.", examples=["gpu"])
    node: str = Field(description="The node that it is on.", examples=["star"])
    status: ReplicaStatus = Field(description="What it is up to.", examples=["ready"])
    engine: str = Field("", description="Kind of its engine.", examples=["vllm"])
    model: str = Field("", description="The model that answers where a personality names none.", examples=["llama3.2"])
    models: tuple[str, ...] = Field((), description="The models that it holds ready in memory.", examples=[["llama3.2"]])
    busy: int = Field(0, description="Replies that it is at.", examples=[2])
    slots: int = Field(0, description="Replies that it can be at before one waits for another; 0: any number.", examples=[8])
    note: str = Field("", description="What it is doing, for people.", examples=["pulling llama3.2: 43 %"])


class ReplicaStore(Protocol):
    """The records of all replicas, shared by every node."""

    async def register(self, record: ReplicaRecord) -> None:
        """Keep `record` for `REPLICA_SECONDS`, in place of the replica's former one.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        ...

    async def leave(self, replica: str) -> None:
        """Forget a replica at once.

        Raises:
            StoreUnavailable: the store did not answer; the record ends by itself.
        """
        ...

    async def list(self) -> Sequence[ReplicaRecord]:
        """Return the records that are kept.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        ...


class ReplicaPresence:
    """One replica among the others. Use as `async with`; says how it is while entered, and leaves at the end."""

    def __init__(
        self, replicas: ReplicaStore, describe: Callable[[], ReplicaRecord], *, every_s: float = REGISTER_EVERY_S
    ) -> None:
        """Say every `every_s` seconds what `describe` returns."""
        self._replicas = replicas
        self._describe = describe
        telling = partial(again_and_again, self._register, every_s=every_s)
        self._telling = Background(telling, name="replica-presence", died="This replica no longer says how it is.")

    async def __aenter__(self) -> "ReplicaPresence":
        """Begin to say so."""
        self._telling.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and be forgotten."""
        await self._telling.stop()
        with contextlib.suppress(StoreUnavailable):
            await self._replicas.leave(self._describe().replica)

    def check(self) -> None:
        """Return if it is still being said.

        Raises:
            RuntimeError: it has died, of a bug.
        """
        self._telling.check()

    async def _register(self) -> None:
        await self._replicas.register(self._describe())
