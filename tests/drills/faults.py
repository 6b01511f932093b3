"""What dies, freezes or is cut off: the table of all faults."""

from dataclasses import dataclass
from typing import Literal

Deed = Literal["kill", "kill-control", "freeze", "partition", "restart-each"]
Hit = Literal["writer", "door", "door-and-writer", "turn"]
"""What a fault must have met in at least `ENOUGH` turns to count: the node that generates a turn, between its first piece and its
end; the node whose door a client is connected to, with its turn between the same; each of them; any turn between the same."""

ENOUGH = 3
RUNS = 10
ALL = ("star", "vengeance", "iceland")
"""The nodes of the lab that generate, unless a fault wants otherwise. The head, aurora, never does."""
_KILLED_S, _OTHERWISE_S = 5.0, 8.0
"""What p99 of the pauses may be."""


@dataclass(frozen=True)
class Fault:
    """One fault."""

    name: str
    title: str
    deed: Deed
    victims: tuple[str, ...]
    hit: Hit
    pause_s: float
    """To reach: p99 of the pauses."""
    generating: tuple[str, ...] = ALL
    away_s: float = 12.0
    """How long the victim is left alone before it is started, healed or let back."""
    quiet_s: float = 1.0
    """How long a client is quiet between an answer and its next message."""


_WITHOUT_VENGEANCE, _WITHOUT_STAR = ("star", "iceland"), ("vengeance", "iceland")
_WORKER, _PRIMARY, _HEAD = ("vengeance",), ("star",), ("aurora",)

FAULTS = (
    Fault("worker-ingress", "kill -9 of a node with ingress only", "kill", _WORKER, "door", _KILLED_S, _WITHOUT_VENGEANCE),
    Fault("worker-generating", "kill -9 of a generating node", "kill", _WORKER, "writer", _KILLED_S),
    Fault("two-nodes", "kill -9 of a generating node and the head", "kill", _HEAD + _WORKER, "door-and-writer", _KILLED_S),
    Fault("head", "kill -9 of the head", "kill", _HEAD, "door", _KILLED_S),
    Fault("primary", "kill -9 of the Redis primary's node", "kill", _PRIMARY, "turn", _OTHERWISE_S, _WITHOUT_STAR),
    Fault("primary-generating", "kill -9 of that node, generating", "kill", _PRIMARY, "writer", _OTHERWISE_S),
    Fault("control-redis", "kill -9 of Ray's control Redis", "kill-control", ("iceland",), "turn", _KILLED_S, away_s=10.0),
    Fault("freeze-worker", "freeze of a generating node", "freeze", _WORKER, "writer", _OTHERWISE_S),
    Fault("partition-worker", "partition of a generating node", "partition", _WORKER, "writer", _OTHERWISE_S),
    Fault("freeze-primary", "freeze of the Redis primary's node, generating", "freeze", _PRIMARY, "writer", _OTHERWISE_S),
    Fault("partition-primary", "partition of that node, generating", "partition", _PRIMARY, "writer", _OTHERWISE_S),
    Fault(
        "rolling", "restart of all nodes, one after another", "restart-each", (*ALL, *_HEAD), "turn", _OTHERWISE_S, quiet_s=5.0
    ),
    Fault("head-away", "the head away for 10 minutes", "kill", _HEAD, "door", _KILLED_S, away_s=600.0, quiet_s=20.0),
)


def fault(name: str) -> Fault:
    """Return the fault of that name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    for each in FAULTS:
        if each.name == name:
            return each
    raise ValueError(f"There is no fault {name!r}; there are {', '.join(each.name for each in FAULTS)}.")
