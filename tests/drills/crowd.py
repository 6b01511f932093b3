"""Who asks what: forty clients, spread over the nodes and the balancer, all from one seed. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

from tests.drills.seen import BALANCER, Way

Mode = Literal["repeatable", "divergent"]


@dataclass(frozen=True)
class Kind:
    """A kind of client, and how many there are of it."""

    way: Way
    retries: bool
    count: int
    through_balancer: bool = False
    two_devices: bool = False

    @property
    def name(self) -> str:
        """What the page calls it."""
        how = f"{self.way}, {'goes on' if self.retries else 'once'}"
        return how + (", by the balancer" if self.through_balancer else "") + (", two devices" if self.two_devices else "")


CROWD = (
    Kind("rest", False, 4),
    Kind("rest", False, 4, through_balancer=True),
    Kind("sse", False, 4),
    Kind("sse", True, 4),
    Kind("sse", True, 2, through_balancer=True),
    Kind("sse", True, 2, two_devices=True),
    Kind("library", True, 4),
    Kind("library", True, 2, through_balancer=True),
    Kind("socket", True, 4),
    Kind("ws", True, 4),
    Kind("ws", True, 4, two_devices=True),
    Kind("ws", True, 2, through_balancer=True),
)
"""Forty clients. Of each kind that goes to a node, as many go to each node."""

_PERSONALITIES = ("robbie", "allanbot", "kristina")
_TOPICS = ("the sea", "my garden", "a long journey", "trains at night", "an old house", "the first snow", "a letter", "music")
_FIRST_S, _LATER_S = (15.0, 30.0), (10.0, 15.0)
"""How long an answer takes, undisturbed: the first ones are to last until the fault, the later ones to be over soon."""
_WORDS_PER_SECOND = (2.0, 4.0)
_WITHIN_S = 2.0
"""The crowd comes in over so many seconds."""


@dataclass(frozen=True)
class Client:
    """One client of the crowd."""

    client_id: str
    kind: Kind
    doors: list[str]
    """Where it asks: the first one first, the next ones when that one is gone."""
    second_doors: list[str]
    """The same for its second device."""
    personality: str
    delay_s: float
    seed: int
    haste: float = 1.0
    """So many times faster than a drill; for tests."""

    def message(self, number: int) -> "Message":
        """Return its message number 0, 1, 2 …"""
        chance = random.Random(f"{self.seed} {number}")
        speed = round(chance.uniform(*_WORDS_PER_SECOND), 2)
        seconds = chance.uniform(*(_LATER_S if number else _FIRST_S))
        text = f"Tell me about {chance.choice(_TOPICS)}, please. ({self.seed}, {number + 1})"
        return Message(text, max(2, round(seconds * speed)), round(speed * self.haste, 2))


@dataclass(frozen=True)
class Message:
    """What to ask, and how long the script's answer is to be."""

    text: str
    words: int
    words_per_second: float


@dataclass(frozen=True)
class Plan:
    """A crowd, and where it goes."""

    name: str
    mode: Mode
    urls: dict[str, str]
    """The base URL of each door: the nodes by name, and the balancer."""
    clients: list[Client]
    pause_s: float = 1.0
    """How long a client is quiet between an answer and its next message."""


PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


def plan(
    seed: int,
    mode: Mode,
    urls: dict[str, str],
    *,
    kinds: Sequence[Kind] = CROWD,
    name: str = "drill",
    pause_s: float = 1.0,
    haste: float = 1.0,
) -> Plan:
    """Return the crowd of this seed; the kinds that go through the balancer go to nodes where there is none.

    `name` begins the clients' ids: where the seed's crowd has been before, it must be another one.
    """
    chance = random.Random(seed)
    nodes = [door for door in urls if door != BALANCER]
    clients: list[Client] = []
    for kind in kinds:
        for _ in range(kind.count):
            order = list(nodes)
            if not kind.through_balancer:
                nodes = nodes[1:] + nodes[:1]  # the next one goes to the next node
            others = order[1:] + order[:1]
            clients.append(
                Client(
                    client_id=f"{name}_{seed}_{len(clients):02}",
                    kind=kind,
                    doors=[BALANCER] if kind.through_balancer and BALANCER in urls else order,
                    second_doors=others if kind.two_devices else [],
                    personality=chance.choice(_PERSONALITIES),
                    delay_s=round(chance.uniform(0, _WITHIN_S) / haste, 3),
                    seed=chance.randrange(2**32),
                    haste=haste,
                )
            )
    return Plan(f"{name}_{seed}", mode, urls, clients, pause_s)
