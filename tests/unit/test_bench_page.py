"""The page of `make bench`: what it says of four nodes follows from the records."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.cpu import memory_bytes
from tests.bench.four_nodes_page import section
from tests.bench.page import write_page

NODES = ["aurora", "star", "vengeance", "iceland"]


def latency(door: str, stream: bool, **other: object) -> dict[str, Any]:
    good = {"turns": 100, "failures": 0, "p50_ms": 9.0, "p99_ms": 20.0, "max_ms": 30.0, "first_p50_ms": 7.0, "first_p99_ms": 15.0}
    return {"door": door, "stream": stream, "p99_by_round_ms": [19.0, 21.0], **good, **other}


def window(number: int, doors: list[str], per_second: float, cpu_s: dict[str, float]) -> dict[str, Any]:
    turns = per_second * 10
    return {
        "round": number, "doors": doors, "per_second": per_second, "turns": turns, "failures": 0, "seconds": 10.0, "cpu_s": cpu_s,
        "others_s": 1.0,
    }  # fmt: skip


def records(*, of_four: float = 2.0) -> dict[str, Any]:
    """Two rounds in which nobody costs 0.2 cores, and a turn 4 ms of the ingress; at four nodes and 50/s half of `of_four` s.

    With as many turns at each node, it costs 6 ms at one, and 7.2 ms at four.
    """
    idle, busy = {"raylet": 1.5, "ingress": 0.5}, {"raylet": 1.5, "ingress": 2.5}
    windows = []
    for number in (1, 2):
        windows += [window(number, [], 0, idle), window(number, NODES[:1], 50, busy), window(number, NODES[:2], 50, busy)]
        windows.append(window(number, NODES, 50, {"raylet": 1.5, "ingress": 0.5 + of_four}))
        windows.append(window(number, NODES[:1], 25, {"raylet": 1.5, "ingress": 0.5 + 1.5}))
        windows.append(window(number, NODES, 100, {"raylet": 1.5, "ingress": 0.5 + 7.2}))
    facts = {
        "cores": "2", "processor": "A processor", "linux": "6.1", "aurora": "0.1.0 abc", "ray": "2.60.0", "redis": "7.0.15",
        "python": "3.11.7", "measured": "2026-11-23",
    }  # fmt: skip
    latencies = [latency(door, stream) for stream in (False, True) for door in (*NODES, "balancer")]
    return {
        "facts": facts, "per_second": 50.0, "per_node": 25.0, "window_s": 12.0, "up_s": 42.4, "memory_bytes": 3_210_000_000,
        "latency": latencies, "cpu": windows,
    }  # fmt: skip


def page(data: dict[str, Any]) -> str:
    return "\n".join(section(data))


def test_what_is_spent_when_nobody_comes_is_taken_off_a_turns_cost() -> None:
    assert "| 1 | 50 | 4.00 (4.00–4.00) | 1.00 |" in page(records())
    assert "| ingress | 4.00 | 4.00 | 4.00 | 0.050 |" in page(records())
    assert "| raylet | 0.00 | 0.00 | 0.00 | 0.150 |" in page(records())


def test_as_many_turns_at_each_node_are_compared_with_each_other() -> None:
    assert "| 1 | 25 | 6.00 (6.00–6.00) | 1.00 |" in page(records())
    assert "| 4 | 100 | 7.20 (7.20–7.20) | 1.20 |" in page(records())
    assert "as many turns at each | 1.20 × | **not reached** |" in page(records())


def test_the_share_of_rays_idle_cost_is_said() -> None:
    assert "four nodes take 0.20 cores, 0.15 of them Ray's own" in page(records())
    assert "they take 0.50 cores, of which Ray's idle cost is 30%" in page(records(of_four=3.0))


@pytest.mark.parametrize(("of_four", "said"), [(2.29, "| 1.15 × | reached |"), (2.4, "| 1.20 × | **not reached** |")])
def test_a_turn_that_costs_more_on_four_nodes_is_told_against_the_bar(of_four: float, said: str) -> None:
    assert said in page(records(of_four=of_four))


def test_one_slow_door_is_named_in_the_bar_that_it_misses() -> None:
    data = records()
    data["latency"][2] |= {"p99_ms": 61.0}
    assert "| added p99 < 50 ms at every door, whole reply | 61.0 ms (vengeance) | **not reached** |" in page(data)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("up_s", 42.4, "within 60 s | 42 s | reached |"),
        ("up_s", 61.0, "within 60 s | 61 s | **not reached** |"),
        ("memory_bytes", 3_210_000_000, "after the load | 3.2 GB | reached |"),
        ("memory_bytes", 5_100_000_000, "after the load | 5.1 GB | **not reached** |"),
    ],
)
def test_the_time_and_the_memory_of_the_lab_are_told_against_their_bars(key: str, value: float, said: str) -> None:
    assert said in page(records() | {key: value})


def test_memory_that_processes_share_is_counted_once() -> None:
    shared = 64 * 2**20
    parent = (
        "import os, sys\n"
        f"block = bytearray(os.urandom({shared}))\n"
        "child = os.fork()\n"
        "os.write(1, b'%d\\n' % os.getpid())\n"  # in one piece: both write at once
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()), int(process.stdout.readline())]
        assert shared <= memory_bytes(pids) < 1.7 * shared
        assert memory_bytes([*pids, 2**22 - 1]) < 1.7 * shared, "one that is no more counts nothing"


def test_failed_requests_are_counted_over_both_measurements() -> None:
    data = records()
    data["latency"][0]["failures"], data["cpu"][1]["failures"] = 2, 1
    assert "Failed requests: 3 of 6500." in page(data).replace("\n", " ")


def test_a_page_holds_the_parts_that_were_measured(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.md"
    write_page(file, {"four_nodes": records()})
    assert "## Four nodes" in file.read_text()
    assert "## One machine" not in file.read_text()
