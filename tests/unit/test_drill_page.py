"""The page of the drills says what its records say, and where a bar is not reached it says so."""

from pathlib import Path

import httpx
import pytest

from tests.drills.__main__ import NOTES, PAGE
from tests.drills.availability import back, bad_per_fault, dark, doors, faults_per_month
from tests.drills.bars import bars, quantile
from tests.drills.durability import Durability, Frozen, Killed, load
from tests.drills.faults import FAULTS, RUNS, fault
from tests.drills.page import render
from tests.drills.probe import says_it_leaves
from tests.drills.records import Before, Counts, Door, Failed, Hit, Record, load_all, missing, save
from tests.drills.seen import Probe


def counts(**other: object) -> Counts:
    good: dict[str, object] = {
        "asked": 60,
        "complete": 57,
        "complete_in_store": 2,
        "never_accepted": 1,
        "wrong": 0,
        "pieces_lost": 0,
        "pieces_repeated": 0,
        "pieces_taken_back": 0,
        "ends": {1: 59},
        "acknowledged": 59,
        "acknowledged_lost": 0,
        "takeovers": 11,
    }
    return Counts.model_validate(good | other)


def failed(**other: object) -> Failed:
    return Failed.model_validate(
        {"once_at_victim": 3, "once_elsewhere": 0, "once_by_balancer": 0, "going_on": 0, "reconnections": 9, "reasons": {}}
        | other
    )


def record(name: str = "head", number: int = 1, **other: object) -> Record:
    good: dict[str, object] = {
        "fault": name,
        "number": number,
        "seed": 4711,
        "mode": "repeatable",
        "started": "2025-11-23T20:00:00Z",
        "software": {"aurora": "0.1.0 abc", "ray": "2.60.0", "redis": "7.0.15", "python": "3.11"},
        "machine": {"cores": "2", "processor": "A processor", "memory_gib": "24"},
        "victims": ["aurora"],
        "clients": 40,
        "fault_after_s": 5.0,
        "restored_after_s": 12.3,
        "whole_after_s": 31.5,
        "before": Before(
            head="aurora",
            redis_primary="star",
            redis_replicas_in_sync=["vengeance", "iceland"],
            control_redis="iceland",
            replicas={"aurora": ["Ingress"]},
        ),
        "hit": Hit(counted=True, turns_open=36, turns_generated_by_victim=0, connections_at_victim=10),
        "counts": counts(),
        "failed": failed(),
        "problems": [],
        "pauses_s": [0.1] * 90 + [2.5] * 10,
        "pauses_once_s": [0.2],
        "pauses_hit_s": [2.5] * 10,
        "detection_s": [],
        "doors": {"star": Door(seconds=60, bad=[]), "balancer": Door(seconds=60, bad=[0, 1])},
        "dark": [],
        "load_lag_s": 0.05,
    }
    return Record.model_validate(good | other)


MISSED = Hit(counted=False, turns_open=1, turns_generated_by_victim=0, connections_at_victim=1)


def line(page: str, begin: str) -> str:
    """The one line of the page that begins so."""
    [found] = [each for each in page.splitlines() if each.startswith(begin)]
    return found


def test_the_page_shows_every_count_of_its_records() -> None:
    second = counts(asked=40, complete=40, complete_in_store=0, never_accepted=0)
    page = render([record(detection_s=[0.1]), record(number=2, counts=second, detection_s=[0.1, 0.2])])

    assert line(page.split("## Answers")[1].split("##")[0], "| kill -9 of the head |") == (
        "| kill -9 of the head | 2 | 100 | 97 | 2 | 1 | 0 | 0 | 0 | 0 | 0 | 118 | 0 |"
    )
    assert line(page.split("## Failed requests")[1].split("##")[0], "| kill -9 of the head |") == (
        "| kill -9 of the head | 6 | 0 | 0 | 0 | 18 | 3 |"
    )
    assert "| kill -9 of the head | 0.1 | 2.5 | 2.5 | 2.5 | 2.5 | 0.1 | 0.2 | 0.2 | 32 | 32 | 10–10 |" in page


def test_a_page_without_records_says_that_nothing_was_done() -> None:
    assert "No run has been done yet." in render([])


def test_what_was_not_reached_is_said_and_the_notes_explain_it() -> None:
    page = render([record(counts=counts(pieces_lost=2), pauses_s=[9.0])], notes="## Why\n\nBecause.")

    assert line(page.split("## Bars")[1].split("##")[0], "| kill -9 of the head |") == (
        "| kill -9 of the head | ✓ 0 | **✗ 2** | ✓ 0 | ✓ 0 | ✓ 0 | ✓ 0 | ✓ 0 | **✗ 9.0 of 5 s** | **✗ 9.0 s** |"
    )
    assert "## Why\n\nBecause." in page


def test_runs_that_are_missing_or_did_not_count_are_named() -> None:
    busy = record(number=3, load_lag_s=0.6, counts=counts(wrong=2))
    page = render([record(), record(number=2, hit=MISSED), busy])

    assert "head 1" in line(page, "Fewer than 10 runs:")
    told = line(page, "2 runs more did not count")
    assert "The fault of 1 hit too little; in 1 the machine had other work" in told
    assert "wrong 2, lost 0, repeated 0, acknowledged lost 0" in told, "what went wrong in them is not hidden"
    assert "**9 of 9 bars are reached**" in page
    assert "With the runs that did not count: 8 of 9." in page


def test_the_page_names_the_commits_of_all_its_runs() -> None:
    other = record(number=2, software={"aurora": "0.1.0 def+", "ray": "2.60.0", "redis": "7.0.15", "python": "3.11"})
    page = render([record(), other, record(number=3)])

    assert "by runs: 0.1.0 abc 2, 0.1.0 def+ 1." in page


def test_a_client_that_tries_once_and_waits_long_is_not_left_out_of_the_pauses() -> None:
    found = bars(fault("freeze-worker"), [record("freeze-worker", pauses_once_s=[12.0] * 3)])

    assert found["pause p99"].reached
    assert found["pause p99, all clients"].shown == "**✗ 12.0 s**"


def test_the_page_is_what_its_records_and_notes_say() -> None:
    assert PAGE.read_text() == render(load_all(), load(), NOTES.read_text()), "write it anew: python -m tests.drills --page"


@pytest.mark.parametrize(
    ("other", "bar"),
    [
        ({"counts": counts(wrong=1)}, "wrong 0"),
        ({"counts": counts(pieces_repeated=1)}, "repeated 0"),
        ({"counts": counts(acknowledged_lost=1)}, "acknowledged lost 0"),
        ({"counts": counts(ends={1: 58, 2: 1})}, "ends ≠ 1: 0"),
        ({"counts": counts(ends={0: 1, 1: 58})}, "ends ≠ 1: 0"),
        ({"failed": failed(going_on=1)}, "left 0"),
        ({"failed": failed(once_by_balancer=1)}, "failed 0"),
        ({"detection_s": [3.1]}, "detection p99 ≤ 3 s"),
    ],
)
def test_each_count_has_its_bar(other: dict[str, object], bar: str) -> None:
    missed = [title for title, found in bars(fault("head"), [record(), record(number=2, **other)]).items() if not found.reached]

    assert missed == [bar]


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]

    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1)) == (50, 99, 100)
    assert quantile([3.0], 0.5) == 3.0


def test_records_are_kept_and_only_missing_runs_are_done_again(tmp_path: Path) -> None:
    kept = [
        record(),
        record(number=2, hit=MISSED),
        record(number=3, load_lag_s=0.6),
        record(number=3, load_lag_s=0.7, seed=4712),
    ]
    for each in kept:
        assert save(each, folder=tmp_path).stat().st_size < 20_000

    assert load_all(tmp_path) == kept
    todo = missing([fault("head")], folder=tmp_path)
    assert [number for _, number in todo] == list(range(2, RUNS + 1)), "a run that did not count is to be done again"


def test_the_names_of_the_faults_are_unlike_and_each_has_a_victim() -> None:
    assert len({each.name for each in FAULTS}) == len(FAULTS) == 13
    assert all(each.victims for each in FAULTS)
    with pytest.raises(ValueError, match="there are worker-ingress"):
        fault("fire")


def probe(at: float, door: str, seconds: float | None = 0.01) -> Probe:
    return Probe(at, door, "get", seconds)


def test_a_second_is_bad_if_any_request_in_it_failed_and_a_dead_door_is_not_asked_about() -> None:
    probes = [
        probe(99.5, "star"),
        probe(100.2, "star"),
        probe(100.6, "star", None),
        probe(101.5, "star"),
        probe(90.0, "aurora"),
        probe(99.0, "aurora", None),
        probe(103.0, "aurora", None),
        probe(110.0, "aurora"),
    ]
    found = doors(probes, fault_at=100.0, away={"aurora": (100.0, 109.0)})

    assert found == {"star": Door(seconds=3, bad=[0]), "aurora": Door(seconds=2, bad=[])}


@pytest.mark.parametrize(
    ("code", "body", "leaves"),
    [
        (503, {"error": {"code": "draining"}}, True),
        (503, {"error": {"code": "overloaded"}}, False),
        (200, {"status": "ok"}, False),
    ],
)
def test_a_door_that_says_it_leaves_is_told_from_one_that_fails(code: int, body: dict[str, object], leaves: bool) -> None:
    assert says_it_leaves(httpx.Response(code, json=body)) is leaves


def test_a_second_is_dark_if_no_door_answered_anything() -> None:
    probes = [probe(100.1, "star", None), probe(100.3, "aurora"), probe(101.1, "star", None), probe(101.3, "aurora", None)]

    assert dark(probes, fault_at=100.0) == [1]


def test_a_door_is_back_with_its_first_answer() -> None:
    probes = [probe(99.0, "star"), probe(105.0, "star", None), probe(107.0, "star"), probe(109.0, "star")]

    assert back(probes, "star", since=100.0) == 107.0
    assert back(probes, "star", since=110.0) is None


def test_so_many_faults_a_month_spoil_a_ten_thousandth_of_it() -> None:
    runs = [{"star": Door(seconds=60, bad=[1, 2, 3, 4]), "balancer": Door(seconds=60, bad=[])}]

    assert bad_per_fault(runs) == 2.0
    assert faults_per_month(2.0) == pytest.approx(129.6)
    assert faults_per_month(0.0) == float("inf")


def test_the_page_shows_what_law_8_kept() -> None:
    frozen = Frozen(
        seconds=15, asked_before=12, due_meanwhile=11, asked_meanwhile=12,
        answered=0, accepted=0, ended=1, pieces=400, complete=24, problems=[],
    )  # fmt: skip
    killed = Killed(kills=2, acknowledged=4, after=1, found=4, before_kill_ms=[-3000.0, 0.1, 2.0, 4.0], again_after_s=[2.9, 3.1])
    done = Durability(started="2025-11-23T20:00:00Z", software={}, machine={}, frozen=frozen, killed=killed)

    section = render([], done).split("## Durability")[1].split("\n## ")[0]

    assert line(section, "| no end |") == "| no end | 1 | **not reached** |"
    assert line(section, "| no `accepted` |") == "| no `accepted` | 0 | reached |"
    assert "3 answers\nhad come before their kill, half of them at most 2.0 ms before it" in section
    assert "**4 of 4** acknowledged messages are there, once, on two nodes: reached." in section
