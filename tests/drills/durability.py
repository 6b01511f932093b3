"""The two drills of law 8: nothing is acknowledged while no replica can keep it; what was, outlives the primary."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from cluster.lab.lab import Lab
from cluster.lab.units import REDIS
from tests.drills.acknowledged import AcknowledgedRound
from tests.drills.crowd import Kind, Plan, plan
from tests.drills.crowd_process import CrowdProcess
from tests.drills.faults import ALL
from tests.drills.histories import judge_all
from tests.drills.machine import machine, software
from tests.drills.records import FOLDER
from tests.drills.seen import Asked, Probe
from tests.drills.stage import NotReady, Stage

FILE = FOLDER / "durability.json"
"""Beside the records of the faults; it is none of them."""
MESSAGES = 100
_AT_ONCE = 10
_FROZEN_S = 15.0
_IN_FLIGHT_S = 0.5
"""What a replica had before it froze may still be acknowledged so soon after."""
_CROWD = [Kind("sse", True, 4), Kind("ws", True, 4, two_devices=True), Kind("library", True, 4)]
_HASTE = 3.0
"""Answers of 5 to 10 s: those that have begun are due while the replicas are frozen."""
_WAIT_S = 120.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Frozen(_Part):
    """Both replicas stood still for a while; one crowd had asked before, another one asked meanwhile."""

    seconds: float = Field(description="How long both replicas stood still.")
    asked_before: int
    due_meanwhile: int = Field(description="Of these, answers that would have ended meanwhile, undisturbed.")
    asked_meanwhile: int
    answered: int = Field(description="Answers of 200 to the probe's messages meanwhile; to be 0.")
    accepted: int = Field(description="Events `accepted` that came meanwhile; to be 0.")
    ended: int = Field(description="Ends that came meanwhile; to be 0.")
    pieces: int = Field(description="Pieces that came meanwhile: they are not waited for.")
    complete: int = Field(description="Answers of both crowds that were whole once one replica was back.")
    problems: list[str]


class Killed(_Part):
    """The primary was killed in the instant after an answer of 200."""

    kills: int
    acknowledged: int
    after: int = Field(description="Of these, answered by the primary's successor, or by itself with its last breath.")
    found: int = Field(description="Acknowledged messages that two nodes have in the history, once, after the failover.")
    before_kill_ms: list[float] = Field(description="How long before the kill each 200 had come, in ms; negative: after it.")
    again_after_s: list[float] = Field(description="From each kill to the next answer of 200.")


class Durability(_Part):
    """Both drills, once."""

    version: Literal[1] = 1
    started: str
    software: dict[str, str]
    machine: dict[str, str]
    frozen: Frozen
    killed: Killed


def load() -> Durability | None:
    """Return the record; None if the drills have not been done."""
    return Durability.model_validate_json(FILE.read_bytes()) if FILE.exists() else None


def drill(lab: Lab, stage: Stage, say: Callable[[str], None]) -> Durability:
    """Do both and keep the record; the lab is whole afterwards.

    Raises:
        NotReady, CrowdFailed: as for a run.
    """
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stage.generate(ALL)
    done = Durability(
        started=started,
        software=software(),
        machine=machine(),
        frozen=replicas_frozen(lab, stage, say),
        killed=primary_killed(lab, stage, say),
    )
    FILE.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in done.model_dump(mode="json").items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return done


def replicas_frozen(lab: Lab, stage: Stage, say: Callable[[str], None]) -> Frozen:
    """Stop both replicas' processes for a while; then let one go on, and see whether every answer comes."""
    replicas = [node for node, role in lab.redis_roles().items() if role.role == "replica"]
    before, meanwhile = (CrowdProcess(lab, _plan(name, stage)) for name in ("before", "meanwhile"))
    with before, _to_freeze(lab, replicas) as processes:
        say("twelve clients ask")
        before.wait_until_asked(_WAIT_S)
        before.let_nobody_ask_again()
        say(f"the Redis replicas on {' and '.join(replicas)} freeze; twelve more ask")
        for process in processes:
            process.suspend()
        since = time.monotonic()
        with meanwhile:
            meanwhile.let_nobody_ask_again()
            time.sleep(_FROZEN_S)
            until = time.monotonic()
            processes[0].resume()
            say(f"the one on {replicas[0]} goes on")
            loads = [crowd.seen(_WAIT_S) for crowd in (before, meanwhile)]
    stage.wait_until_whole(ALL, _WAIT_S)
    asked = [one for load in loads for one in load.asked]
    two = dict(list(stage.urls.items())[:2])
    verdicts = lab.call(lambda: asyncio.run(judge_all(asked, two)))
    first = since + _IN_FLIGHT_S
    return Frozen(
        seconds=round(until - since, 1),
        asked_before=len(loads[0].asked),
        due_meanwhile=sum(first < one.asked_at + one.words / one.words_per_second < until for one in loads[0].asked),
        asked_meanwhile=len(loads[1].asked),
        answered=sum(_answered(probe, first, until) for load in loads for probe in load.probes),
        accepted=_heard(asked, first, until, "accepted"),
        ended=_heard(asked, first, until, "done", "failed", "stopped"),
        pieces=_heard(asked, first, until, "piece"),
        complete=sum(verdict.complete for verdict in verdicts),
        problems=[problem for verdict in verdicts for problem in verdict.problems][:20],
    )


def primary_killed(lab: Lab, stage: Stage, say: Callable[[str], None]) -> Killed:
    """Let ten ask at once, and kill the primary on one of their 200s, until enough had their 200 before a kill."""
    urls = list(stage.urls.values())
    rounds: list[AcknowledgedRound] = []
    found = acknowledged = after = 0
    while acknowledged - after < MESSAGES:
        stage.wait_until_whole(ALL, _WAIT_S)
        node = lab.redis_primary()
        pid = lab.machines[node].unit(REDIS)
        if pid is None:
            raise NotReady(f"The Redis primary on {node} has no process.")
        one = AcknowledgedRound(f"ack{time.time_ns() // 10**9}", pid, asked=_AT_ONCE, kill_on=len(rounds) % _AT_ONCE + 1)
        lab.call(lambda one=one: asyncio.run(one.ask(urls)))  # type: ignore[misc]
        found += lab.call(lambda one=one: asyncio.run(one.found(urls[:2])))  # type: ignore[misc]
        rounds.append(one)
        acknowledged += len(one.acknowledged)
        after += sum(age < 0 for age in one.before_kill_ms())
        say(f"kill {len(rounds)}, on {node}: {acknowledged} acknowledged, {after} of them after their kill; {found} found")
    stage.wait_until_whole(ALL, _WAIT_S)
    return Killed(
        kills=len(rounds),
        acknowledged=acknowledged,
        after=after,
        found=found,
        before_kill_ms=sorted(age for one in rounds for age in one.before_kill_ms()),
        again_after_s=sorted(one.again_after_s for one in rounds),
    )


def _plan(name: str, stage: Stage) -> Plan:
    return plan(1, "repeatable", stage.urls, kinds=_CROWD, name=f"{name}_{time.time_ns() // 10**9}", haste=_HASTE)


@contextmanager
def _to_freeze(lab: Lab, nodes: Sequence[str]) -> Iterator[list[psutil.Process]]:
    """Give the Redis processes of these nodes; whatever happens, they go on in the end."""
    processes = [psutil.Process(lab.machines[node].unit(REDIS)) for node in nodes]
    try:
        yield processes
    finally:
        for process in processes:
            process.resume()


def _answered(probe: Probe, first: float, last: float) -> bool:
    return probe.kind == "chat" and probe.seconds is not None and first < probe.at + probe.seconds < last


def _heard(asked: Sequence[Asked], first: float, last: float, *types: str) -> int:
    """Count the events of these types that any device heard in that time."""
    heard = (heard for one in asked for device in one.devices for heard in device.heard)
    return sum(each.event.type in types and first < each.at < last for each in heard)
