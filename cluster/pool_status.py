"""The replicas of the pools, as they tell of themselves: what each holds loaded, how busy it is, what it is doing."""

from collections.abc import Iterator, Sequence

import httpx
from pydantic import BaseModel

from cluster.component import Component

_ANSWER_S = 2.0


class PoolReplica(BaseModel):
    """A replica of a pool, as it tells of itself."""

    pool: str
    replica: str = ""
    """Serve's id of it."""
    node: str
    status: str
    """`starting`, `ready`, `leaving` or `failing`."""
    engine: str = ""
    model: str = ""
    models: list[str] = []
    busy: int = 0
    slots: int = 0
    note: str = ""


def pools_at(url: str) -> list[PoolReplica]:
    """Return the replicas of all pools, as the node at `url` knows them; none where it does not say."""
    try:
        pools = httpx.get(f"{url}/api/pools", timeout=_ANSWER_S, trust_env=False).raise_for_status().json()["pools"]
        return [PoolReplica.model_validate(replica) for each in pools for replica in each["replicas"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []


def pool_lines(replicas: Sequence[PoolReplica]) -> Iterator[Component]:
    """Give a line per replica of a pool: what it holds loaded, how busy it is, and what it is doing."""
    for replica in replicas:
        busy = f"{replica.busy} of {replica.slots} busy" if replica.slots else f"{replica.busy} busy"
        loaded = ", ".join(replica.models) + " loaded" if replica.models else f"{replica.model} not loaded"
        state = "running" if replica.status == "ready" else replica.status
        note = ", ".join(filter(None, (replica.engine, loaded, busy, replica.note)))
        yield Component(name=f"pool {replica.pool}", state=state, where=replica.node, note=note)
