"""One run of one drill: prepare, let the crowd ask, strike, undo, wait until all is whole, count."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from cluster.lab.lab import Lab
from tests.drills import availability, counting
from tests.drills.balancer import balancer
from tests.drills.checker import Verdict
from tests.drills.crowd import Mode, plan
from tests.drills.crowd_process import CrowdProcess
from tests.drills.deeds import let_leave, restart, strike, undo
from tests.drills.faults import Fault
from tests.drills.histories import judge_all
from tests.drills.machine import machine, software
from tests.drills.records import Before, Record
from tests.drills.seen import BALANCER, Load
from tests.drills.stage import Stage

_FAULT_AFTER_S = (3.0, 10.0)
_ASKED_S = 60.0
_WHOLE_S = 240.0
_ANSWERS_S = 150.0


class Times:
    """When things happened, on the monotonic clock."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.asked_at = self.fault_at = self.restored_at = self.whole_at = 0.0
        self.away: dict[str, tuple[float, float]] = {}
        """For each door that was taken away: when, and when its node was started or healed."""


def run(lab: Lab, stage: Stage, fault: Fault, number: int, seed: int, say: Callable[[str], None]) -> Record:
    """Do one run and return its record; the lab is whole afterwards.

    Raises:
        NotReady: the lab does not come into its state before, or is not whole again after.
        CrowdFailed: the clients did not do their part.
    """
    chance = random.Random(seed)
    mode: Mode = "divergent" if number % 2 == 0 else "repeatable"
    before = stage.prepare(fault)
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    times = Times()
    with balancer(lab) as url:
        doors = {**stage.urls, BALANCER: url}
        crowd_plan = plan(seed, mode, doors, name=f"drill_{time.time_ns() // 10**9}", pause_s=fault.quiet_s)
        with CrowdProcess(lab, crowd_plan) as crowd:
            say("forty clients ask")
            crowd.wait_until_asked(_ASKED_S)
            times.asked_at = time.monotonic()
            time.sleep(chance.uniform(*_FAULT_AFTER_S))
            _strike(lab, stage, fault, times, say)
            crowd.let_nobody_ask_again()
            stage.wait_until_whole(fault.generating, _WHOLE_S)
            times.whole_at = time.monotonic()
            say("the lab is whole again; the last answers come")
            seen = crowd.seen(_ANSWERS_S)
    say("the checker compares")
    two = chance.sample(list(stage.urls), 2)
    urls = {node: stage.urls[node] for node in two}
    verdicts = lab.call(lambda: asyncio.run(judge_all(seen.asked, urls)))
    return _record(fault, number, seed, mode, started, before, times, seen, verdicts)


def _strike(lab: Lab, stage: Stage, fault: Fault, times: Times, say: Callable[[str], None]) -> None:
    say(f"{fault.title}: {', '.join(fault.victims)}")
    times.fault_at = time.monotonic()
    if fault.deed == "restart-each":
        for node in fault.victims:
            say(f"{node} restarts")
            let_leave(lab, node, say)
            since = time.monotonic()
            restart(lab, node)
            times.away[node] = (since, time.monotonic())
            stage.wait_until_whole(fault.generating, _WHOLE_S)
    else:
        strike(lab, fault)
        _leave_alone(fault.away_s, times.fault_at, say)
        undo(lab, fault)
        if fault.deed != "kill-control":  # it takes no door with it
            times.away = dict.fromkeys(fault.victims, (times.fault_at, time.monotonic()))
    times.restored_at = time.monotonic()


def _leave_alone(seconds: float, since: float, say: Callable[[str], None]) -> None:
    """Let the fault last, and show that time passes."""
    while (left := since + seconds - time.monotonic()) > 0:
        if left > 30:
            say(f"{left:.0f} s to go")
        time.sleep(min(left, 30.0))


def _record(
    fault: Fault,
    number: int,
    seed: int,
    mode: Mode,
    started: str,
    before: Before,
    times: Times,
    seen: Load,
    verdicts: Sequence[Verdict],
) -> Record:
    victims, at = fault.victims, times.fault_at
    going_on, once, met = counting.pauses(verdicts, victims, at)
    back = {door: availability.back(seen.probes, door, since=until) or times.whole_at for door, (_, until) in times.away.items()}
    away = {door: (since, back[door]) for door, (since, _) in times.away.items()}
    doors = availability.doors(seen.probes, fault_at=at, away=away)
    return Record(
        fault=fault.name,
        number=number,
        seed=seed,
        mode=mode,
        started=started,
        software=software(),
        machine=machine(),
        victims=list(victims),
        clients=len({one.client_id for one in seen.asked}),
        fault_after_s=round(at - times.asked_at, 2),
        restored_after_s=round(times.restored_at - at, 2),
        whole_after_s=round(times.whole_at - at, 2),
        before=before,
        hit=counting.hit(fault, verdicts, at),
        counts=counting.counts(verdicts),
        failed=counting.failed(verdicts, victims),
        problems=counting.problems(verdicts),
        pauses_s=going_on,
        pauses_once_s=once,
        pauses_hit_s=met,
        detection_s=counting.detection(verdicts, at),
        doors=doors,
        dark=availability.dark(seen.probes, fault_at=at),
        load_lag_s=round(seen.lag_s, 2),
    )
