"""From what the crowd saw and the checker found to the counts of a record. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from serve_app.chat.events import Takeover
from tests.drills.checker import Verdict
from tests.drills.faults import ENOUGH, Fault
from tests.drills.pauses import longest_pauses, was_connected_to, was_generating_on, was_speaking
from tests.drills.records import Counts, Failed, Hit
from tests.drills.seen import BALANCER, Asked

_PROBLEMS = 20


def hit(fault: Fault, verdicts: Iterable[Verdict], at: float) -> Hit:
    """Return what the fault met at this time, and whether that is enough."""
    open_, generated, connected = 0, 0, 0
    for verdict in verdicts:
        devices = verdict.asked.devices
        if not devices or not was_speaking(devices[0], at):
            continue
        open_ += 1
        generated += was_generating_on(verdict.asked, verdict.readings[0], fault.victims, at)
        connected += sum(was_connected_to(device, fault.victims, at) for device in devices)
    met = {"writer": generated, "door": connected, "door-and-writer": min(generated, connected), "turn": open_}[fault.hit]
    return Hit(counted=met >= ENOUGH, turns_open=open_, turns_generated_by_victim=generated, connections_at_victim=connected)


def counts(verdicts: Sequence[Verdict]) -> Counts:
    """Return what became of what was asked."""
    complete = sum(verdict.complete for verdict in verdicts)
    in_store = sum(verdict.complete_in_store for verdict in verdicts)
    refused = sum(_never_accepted(verdict) for verdict in verdicts)
    return Counts(
        asked=len(verdicts),
        complete=complete,
        complete_in_store=in_store,
        never_accepted=refused,
        wrong=len(verdicts) - complete - in_store - refused,
        pieces_lost=sum(verdict.lost for verdict in verdicts),
        pieces_repeated=sum(verdict.repeated for verdict in verdicts),
        pieces_taken_back=sum(verdict.taken_back for verdict in verdicts),
        ends=dict(Counter(verdict.ends for verdict in verdicts if verdict.kept)),
        acknowledged=sum(verdict.asked.acknowledged_at is not None for verdict in verdicts),
        acknowledged_lost=sum(verdict.acknowledged_lost for verdict in verdicts),
        takeovers=sum(next(_takeovers(verdict), None) is not None for verdict in verdicts),
    )


def failed(verdicts: Iterable[Verdict], victims: Collection[str]) -> Failed:
    """Return the requests that failed, by who made them."""
    asked = [verdict.asked for verdict in verdicts]
    once = [one for one in asked if not one.retries and one.ended_at is None]
    hard = [one for one in asked if one.ended_at is None and (one.retries or one.door == BALANCER)]
    return Failed(
        once_at_victim=sum(one.door in victims for one in once),
        once_elsewhere=sum(one.door not in victims and one.door != BALANCER for one in once),
        once_by_balancer=sum(one.door == BALANCER for one in once),
        going_on=sum(one.ended_at is None for one in asked if one.retries),
        reconnections=sum(len(one.failures) for one in asked if one.retries),
        reasons=dict(Counter(f"{one.way}: {one.failures[-1].why if one.failures else 'silence'}" for one in hard)),
    )


def pauses(verdicts: Iterable[Verdict], victims: Collection[str], at: float) -> tuple[list[float], list[float], list[float]]:
    """Return the longest pauses of clients that go on, of those that try once, and of those of the first that the fault met."""
    going_on: list[float] = []
    once: list[float] = []
    met: list[float] = []
    for verdict in verdicts:
        found = [round(pause, 2) for pause in longest_pauses(verdict.asked)]
        lasting = verdict.asked.retries or verdict.asked.door == BALANCER
        (going_on if lasting else once).extend(found)
        if lasting and _met(verdict, victims, at):
            met.extend(found)
    return sorted(going_on), sorted(once), sorted(met)


def detection(verdicts: Iterable[Verdict], at: float) -> list[float]:
    """Return how long after the fault each takeover came, as its client heard it first.

    A client that tries once hears nothing through a door that stands still, so only those that go on are asked.
    """
    found = []
    for verdict in verdicts:
        if not verdict.asked.retries:
            continue
        later = [when for when in _takeovers(verdict) if when > at]
        if later:
            found.append(round(min(later) - at, 2))
    return sorted(found)


def problems(verdicts: Iterable[Verdict]) -> list[str]:
    """Return the first problems, each with the message it is about."""
    return list(_named(verdicts))[:_PROBLEMS]


def _named(verdicts: Iterable[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        for problem in verdict.problems:
            yield f"{verdict.asked.way} {verdict.asked.turn_id or verdict.asked.message}: {problem}"


def _takeovers(verdict: Verdict) -> Iterator[float]:
    """Yield when each device heard of a takeover."""
    for device in verdict.asked.devices:
        yield from (heard.at for heard in device.heard if isinstance(heard.event, Takeover))


def _met(verdict: Verdict, victims: Collection[str], at: float) -> bool:
    asked: Asked = verdict.asked
    if not asked.devices or not was_speaking(asked.devices[0], at):
        return False
    connected = any(was_connected_to(device, victims, at) for device in asked.devices)
    return connected or was_generating_on(asked, verdict.readings[0], victims, at)


def _never_accepted(verdict: Verdict) -> bool:
    asked = verdict.asked
    return not verdict.kept and asked.acknowledged_at is None and not asked.retries and not verdict.problems
