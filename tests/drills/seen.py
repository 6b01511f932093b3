"""What the clients of a drill saw: values that travel from the load to the checker as JSON.

Times are seconds of the machine's monotonic clock, which all processes of one machine share.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from serve_app.chat.events import Event

Way = Literal["rest", "sse", "ws", "library", "socket"]
"""How a client talks. `rest`, `sse` and `ws` are bare HTTP and WebSocket; the last two are `serve_app.client`: `AuroraClient`
(server-sent events) and `AuroraSocket` (WebSocket)."""

BALANCER = "balancer"
"""The door that is no node."""


@dataclass
class Link:
    """One connection of a device, as far as one turn is concerned."""

    door: str
    opened_at: float
    after: int = 0
    """The piece after which the device asked it to go on; 0: from the start."""
    lost: str = ""
    """Why it broke off before the turn had ended; empty if it did not."""


@dataclass
class Heard:
    """An event, when it came, and over which link (its place in the device's list)."""

    at: float
    link: int
    event: Annotated[Event, Field(discriminator="type")]


@dataclass
class Device:
    """What one device heard of one turn."""

    links: list[Link] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)


@dataclass
class Failure:
    """A request that a client made and that was not answered with what it asked for."""

    at: float
    door: str
    why: str


@dataclass
class Asked:
    """One message of one client, and everything that came of it."""

    client_id: str
    way: Way
    retries: bool
    door: str
    """The node it was sent to first, or `BALANCER`."""
    personality: str
    message: str
    """Unlike every other message of the run, so that it can be found in the history."""
    words: int
    words_per_second: float
    divergent: bool
    asked_at: float
    acknowledged_at: float | None = None
    """When a 200 or an `accepted` came."""
    ended_at: float | None = None
    """When the client had its answer, or gave up."""
    turn_id: str = ""
    devices: list[Device] = field(default_factory=list)
    """The one that asked first; none for REST."""
    answer: dict[str, Any] | None = None
    """The body of the 200 of a REST request."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def options(self) -> dict[str, object]:
        """What to ask of the scripted engine."""
        return {"words": self.words, "words_per_second": self.words_per_second, "divergent": self.divergent}


@dataclass
class Probe:
    """One request of the probe. `seconds` is None if no good answer came in time."""

    at: float
    door: str
    kind: Literal["get", "chat"]
    seconds: float | None
    why: str = ""


@dataclass
class Load:
    """All that a load saw."""

    asked: list[Asked] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    lag_s: float = 0.0
    """The longest time for which the load itself did not get to look: no pause below it says anything."""


LOAD: TypeAdapter[Load] = TypeAdapter(Load)
