"""What Aurora measures of itself: the table of metrics, and the port through which they leave the core.

Reported per turn, per connection and per second, never per piece. Labels are bounded: names of personalities, pools, models and
nodes come from the configuration, everything else is a word of this code; never an id of a client, turn or conversation.
`docs/metrics.md` says the same for people; a test compares the two.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol


class Kind(StrEnum):
    """How the values of a metric belong together."""

    COUNTER = "counter"
    """Grows; what matters is its rate."""
    GAUGE = "gauge"
    """How many there are now."""
    HISTOGRAM = "histogram"
    """How often a value was in which range."""


@dataclass(frozen=True)
class Metric:
    """A line of the table. `buckets` are the upper limits of a histogram's ranges, in `unit`."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TURNS = Metric(
    "aurora_turns",
    Kind.COUNTER,
    "turns",
    "Turns that ended. `outcome`: done, failed, stopped; `code`: of what failed, else empty.",
    ("personality", "pool", "model", "outcome", "code"),
)
FIRST_PIECE = Metric(
    "aurora_first_piece_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From a message being kept to the first piece of its reply leaving an ingress, for followers that were there from the start.",
    buckets=(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ATTEMPTS = Metric(
    "aurora_attempts", Kind.COUNTER, "attempts", "Claims of a turn by a run: first attempts and takeovers.", ("pool", "model")
)
TAKEOVERS = Metric(
    "aurora_takeovers", Kind.COUNTER, "attempts", "Claims after the first: another run went on with the turn.", ("pool",)
)
TAKEOVER_PAUSE = Metric(
    "aurora_takeover_pause_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "The pause a follower saw at a takeover: from the last piece before it to the first one after it, or to the turn's end.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8, 10, 15, 30, 60),
)
RESUMES = Metric(
    "aurora_resumes", Kind.COUNTER, "requests", "Times a client came back to a turn; `over`: websocket, sse.", ("over",)
)
CONNECTIONS = Metric("aurora_connections", Kind.GAUGE, "connections", "Open connections; `over`: websocket, sse.", ("over",))
RUNNING = Metric("aurora_running_turns", Kind.GAUGE, "turns", "Turns that engines are at work on.")
WAITING = Metric("aurora_waiting_turns", Kind.GAUGE, "turns", "Turns that routers hold and no run has claimed yet.")
REDIS_RECONNECTS = Metric(
    "aurora_redis_reconnects",
    Kind.COUNTER,
    "times",
    "Times Redis was back after having been away; `link`: commands, bus.",
    ("link",),
)
REDIS_SECONDS = Metric(
    "aurora_redis_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Round trip of one script, with its WAIT for replicas; `script`: begin, claim, finish, renew, sweep.",
    ("script",),
    (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2),
)

METRICS = (
    TURNS,
    FIRST_PIECE,
    ATTEMPTS,
    TAKEOVERS,
    TAKEOVER_PAUSE,
    RESUMES,
    CONNECTIONS,
    RUNNING,
    WAITING,
    REDIS_RECONNECTS,
    REDIS_SECONDS,
)
MEASURED_SCRIPTS = frozenset({"begin", "claim", "finish", "renew", "sweep"})
"""Scripts that run once per turn or once per second. An append runs per piece: measuring it would cost what it measures."""


class Meter(Protocol):
    """Where measurements go. Calls return at once, never raise on behalf of whoever collects, and take microseconds.

    Labels are given by position, as many as the metric has; the node is added by the implementation.
    """

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add `by` to a counter, or to a gauge, which `by` may also lower."""
        ...

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Say what a gauge is now."""
        ...

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Put one value into a histogram."""
        ...


class NoMeter(Meter):
    """Measures nothing: for whoever uses the core without anybody watching."""

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Do nothing."""

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Do nothing."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Do nothing."""


UNMEASURED: Final = NoMeter()
"""The default wherever a meter may be given."""


@contextmanager
def counted(meter: Meter, gauge: Metric, *labels: str) -> Iterator[None]:
    """Count one more in `gauge` for as long as the block lasts, however it ends."""
    meter.count(gauge, *labels)
    try:
        yield
    finally:
        meter.count(gauge, *labels, by=-1)
