"""One JSON per run, in docs/drills: what was done to whom, and every count of what the clients saw."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tests.drills.crowd import Mode
from tests.drills.faults import RUNS, Fault

VERSION = 1
UNDISTURBED_S = 0.5
"""By how much the load may be late where the machine does nothing else: 0.14 to 0.47 s were seen."""
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "drills"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Before(_Part):
    """How the lab was when the fault came."""

    head: str
    redis_primary: str
    redis_replicas_in_sync: list[str]
    control_redis: str
    replicas: dict[str, list[str]] = Field(description="Deployments by node.")


class Hit(_Part):
    """What the fault met, by the clients' own events."""

    counted: bool = Field(description="Whether enough was met.")
    turns_open: int = Field(description="Turns between their first piece and their end.")
    turns_generated_by_victim: int
    connections_at_victim: int = Field(description="Devices connected to a victim's door in such a turn.")


class Counts(_Part):
    """What became of what was asked."""

    asked: int
    complete: int = Field(description="Answers that the client has whole, equal to the undisturbed text and to what is stored.")
    complete_in_store: int = Field(description="Whole and right in the history; the client, which tries once, had given up.")
    never_accepted: int = Field(
        description="Refused or cut off before the message was kept; the client, which tries once, knows it."
    )
    wrong: int = Field(description="All others.")
    pieces_lost: int
    pieces_repeated: int
    pieces_taken_back: int = Field(description="By `rewind` (law 10): said, lost with the Redis primary, and said again.")
    ends: dict[int, int] = Field(description="Number of different ends of a turn: how many turns had so many.")
    acknowledged: int
    acknowledged_lost: int
    takeovers: int = Field(
        description="Turns whose client heard of one. Before 2026-11-30 those that heard `started` twice are in it, too."
    )


class Failed(_Part):
    """Requests that failed for their client."""

    once_at_victim: int = Field(description="Of clients that try once, at a victim's door.")
    once_elsewhere: int = Field(description="The same, at a surviving door.")
    once_by_balancer: int = Field(description="The same, through the balancer.")
    going_on: int = Field(description="Of clients that try again: messages that had no answer in the end.")
    reconnections: int = Field(description="Connections that clients which try again had to replace.")
    reasons: dict[str, int] = Field(
        description="Of those through the balancer, and of messages without an answer: what was said last."
    )


class Door(_Part):
    """A door as the probe saw it."""

    seconds: int = Field(description="Seconds in which it lived and was knocked at.")
    bad: list[int] = Field(description="Those in which some request was not answered in 2 s, counted from the fault.")


class Record(_Part):
    """One run."""

    version: Literal[1] = 1
    fault: str
    number: int
    seed: int
    mode: Mode
    started: str = Field(description="UTC.")
    software: dict[str, str]
    machine: dict[str, str]
    victims: list[str]
    clients: int
    fault_after_s: float = Field(description="From the moment at which all answers were under way.")
    restored_after_s: float = Field(description="From the fault to the end of it: the node started again, healed.")
    whole_after_s: float = Field(description="From the fault to the moment at which nothing was missing any more.")
    before: Before
    hit: Hit
    counts: Counts
    failed: Failed
    problems: list[str] = Field(description="The first of what the checker found.")
    pauses_s: list[float] = Field(
        description="Longest pause of each device of a client that goes on, or asks through the balancer."
    )
    pauses_once_s: list[float] = Field(description="The same of clients that try once at a door, where they had their answer.")
    pauses_hit_s: list[float] = Field(description="Those of `pauses_s` whose turn or connection was with a victim.")
    detection_s: list[float] = Field(description="From the fault to each takeover, as clients heard it.")
    doors: dict[str, Door]
    dark: list[int] = Field(description="Seconds in which no door at all answered anything.")
    load_lag_s: float = Field(description="How late the load itself was at most; pauses are no more exact than that.")

    @property
    def disturbed(self) -> bool:
        """Whether the machine had other work, so that what clients saw is not the system's doing alone."""
        return self.load_lag_s > UNDISTURBED_S

    @property
    def counted(self) -> bool:
        """Whether the run counts: its fault hit enough, and nothing else disturbed it."""
        return self.hit.counted and not self.disturbed


def path(fault: str, number: int, *, folder: Path = FOLDER) -> Path:
    """Where the record of a run that counts is."""
    return folder / f"{fault}-{number}.json"


def _path_of(record: Record, folder: Path) -> Path:
    """Where `record` is: a run that did not count is done again with another seed, and neither replaces the other."""
    if record.counted:
        return path(record.fault, record.number, folder=folder)
    return folder / f"{record.fault}-{record.number}-not-counted-{record.seed}.json"


def save(record: Record, *, folder: Path = FOLDER) -> Path:
    """Keep `record`; return where."""
    file = _path_of(record, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.model_dump(mode="json").items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return file


def load_all(folder: Path = FOLDER) -> list[Record]:
    """Return every record there is, in the order of their runs.

    Raises:
        ValueError: a file is no record.
    """
    found = [Record.model_validate_json(file.read_bytes()) for file in sorted(folder.glob("*-*.json"))]
    return sorted(found, key=lambda record: (record.fault, record.number, not record.counted))


def missing(faults: Iterable[Fault], *, runs: int = RUNS, folder: Path = FOLDER) -> list[tuple[Fault, int]]:
    """Return which runs are still to be done, fault by fault."""
    return [
        (fault, number)
        for fault in faults
        for number in range(1, runs + 1)
        if not path(fault.name, number, folder=folder).exists()
    ]
