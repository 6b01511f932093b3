"""What is to be reached, and whether it was. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from tests.drills.faults import Fault
from tests.drills.records import Record

DETECTION_S = 3.0


def quantile(values: Sequence[float], q: float) -> float:
    """Return the value below or at which the share `q` of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(q * len(ordered)) - 1)]


@dataclass(frozen=True)
class Bar:
    """Whether something was reached in every run of a fault, and the figure."""

    reached: bool
    value: str

    @property
    def shown(self) -> str:
        """What the page shows."""
        return f"✓ {self.value}" if self.reached else f"**✗ {self.value}**"


def bars(fault: Fault, runs: Sequence[Record]) -> dict[str, Bar]:
    """Return the bars of a fault, by what is asked."""
    counts = [run.counts for run in runs]
    totals = {
        "wrong 0": sum(c.wrong for c in counts),
        "lost 0": sum(c.pieces_lost for c in counts),
        "repeated 0": sum(c.pieces_repeated for c in counts),
        "acknowledged lost 0": sum(c.acknowledged_lost for c in counts),
        "ends ≠ 1: 0": sum(turns for c in counts for ends, turns in c.ends.items() if ends != 1),
        "left 0": sum(run.failed.going_on for run in runs),
        "failed 0": sum(run.failed.once_by_balancer for run in runs),
    }
    found = {title: Bar(total == 0, str(total)) for title, total in totals.items()}
    if pauses := [pause for run in runs for pause in run.pauses_s]:
        p99 = quantile(pauses, 0.99)
        found["pause p99"] = Bar(p99 <= fault.pause_s, f"{p99:.1f} of {fault.pause_s:g} s")
    if pauses := [pause for run in runs for pause in (*run.pauses_s, *run.pauses_once_s)]:
        p99 = quantile(pauses, 0.99)
        found["pause p99, all clients"] = Bar(p99 <= fault.pause_s, f"{p99:.1f} s")
    if fault.deed == "kill" and fault.pause_s < 8 and (detection := [d for run in runs for d in run.detection_s]):
        p99 = quantile(detection, 0.99)
        found[f"detection p99 ≤ {DETECTION_S:g} s"] = Bar(p99 <= DETECTION_S, f"{p99:.1f} s")
    return found
