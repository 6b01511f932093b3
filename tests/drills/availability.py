"""Was the chat there? Seconds in which a living door answered, from the probe's requests. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import floor

from tests.drills.probe import IN_TIME_S
from tests.drills.records import Door
from tests.drills.seen import Probe

MONTH_S = 30 * 24 * 3600
TARGET = 0.9999
"""What the mission asks for: at most 259 seconds of a month."""


def doors(probes: Iterable[Probe], *, fault_at: float, away: Mapping[str, tuple[float, float]]) -> dict[str, Door]:
    """Return each door's seconds; `away`: the doors that the fault took away, from when until when.

    A second is bad if any request that began in it failed or took longer than the probe waits: the strictest way to count.
    """
    good: dict[str, dict[int, bool]] = defaultdict(dict)
    for probe in probes:
        if probe.door in away and away[probe.door][0] - IN_TIME_S <= probe.at < away[probe.door][1]:
            continue  # what began in the last moments of a door died with it: that is the fault, not a survivor's failure
        second = floor(probe.at - fault_at)
        good[probe.door][second] = good[probe.door].get(second, True) and probe.seconds is not None
    return {
        door: Door(seconds=len(seconds), bad=sorted(s for s, fine in seconds.items() if not fine))
        for door, seconds in good.items()
    }


def dark(probes: Iterable[Probe], *, fault_at: float) -> list[int]:
    """Return the seconds, counted from the fault, in which no door at all answered anything."""
    answered: dict[int, bool] = defaultdict(bool)
    for probe in probes:
        answered[floor(probe.at - fault_at)] |= probe.seconds is not None
    return sorted(second for second, good in answered.items() if not good)


def back(probes: Iterable[Probe], door: str, *, since: float) -> float | None:
    """Return when a door first answered again after `since`; None if it did not."""
    return min(
        (probe.at for probe in probes if probe.door == door and probe.at >= since and probe.seconds is not None), default=None
    )


def bad_per_fault(runs: Sequence[Mapping[str, Door]]) -> float:
    """Return how many seconds of a door's time one fault spoils, on average over the doors."""
    spoilt = [len(door.bad) for run in runs for door in run.values()]
    return sum(spoilt) / len(spoilt) if spoilt else 0.0


def faults_per_month(bad_s: float) -> float:
    """Return how many such faults a month may have while the target still holds."""
    return (1 - TARGET) * MONTH_S / bad_s if bad_s else float("inf")
