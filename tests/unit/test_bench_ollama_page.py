"""The page of `make bench`: what it says of one Ollama follows from the records."""

from pathlib import Path
from typing import Any

import pytest

from tests.bench.one_ollama import AURORA, BARE, CASES, LITELLM, PACED_CASES, SEED
from tests.bench.one_ollama_page import section
from tests.bench.page import write_page

FACTS = {"cores": "2", "processor": "A processor", "python": "3.11.7", "measured": "2026-11-29"}


def records(**changes: dict[str, Any]) -> dict[str, Any]:
    """Two rounds in which Aurora costs 4 ms a turn, the container 5 and LiteLLM 30; `changes` are those of systems, by name."""
    systems: dict[str, dict[str, Any]] = {
        AURORA: {"rate": 400.0, "first_p50_ms": 6.0, "cpu_ms": {"ingress": 1.0, "inference": 3.0}},
        SEED: {"rate": 300.0, "first_p50_ms": 4.0, "cpu_ms": {"one process": 5.0}},
        LITELLM: {"rate": 50.0, "first_p50_ms": 20.0, "cpu_ms": {"litellm": 30.0}},
        BARE: {"rate": 9000.0, "first_p50_ms": 1.0, "cpu_ms": {}},
    }
    rest = {"turns": 100, "failures": 0, "p50_ms": 8.0, "p99_ms": 20.0, "standin_ms": 0.02, "generator_ms": 0.1}
    measured = [
        {"system": name, "tokens": case.tokens, "stream": case.stream, "connections": case.connections, "pace": case.pace}
        | {"round": number, **rest, **own, **changes.get(name, {})}
        for number in range(2)
        for case in (*CASES, *PACED_CASES)
        for name, own in systems.items()
    ]
    return {"facts": FACTS, "litellm": "1.2.3", "window_s": 5.0, "idle_cores": {AURORA: 0.1, SEED: 0.0}, "measured": measured}


def page(data: dict[str, Any]) -> str:
    return "\n".join(section(data))


def without_litellm() -> dict[str, Any]:
    data = records()
    kept = [r for r in data["measured"] if r["system"] != LITELLM]
    return {**data, "litellm": "", "measured": kept}


@pytest.mark.parametrize(("cost", "said"), [(5.0, "| 1.00 × | reached |"), (5.5, "| 0.91 × | **not reached** |")])
def test_turns_per_cpu_second_are_told_against_the_seeds_container_for_every_way_to_ask(cost: float, said: str) -> None:
    told = page(records(**{AURORA: {"cpu_ms": {"ingress": cost}}}))
    for kind in ("20 tokens, whole", "20 tokens, streamed", "300 tokens, whole", "300 tokens, streamed"):
        assert f"| ≥ 1.0 × the seed's container in turns per CPU-second, {kind} {said}" in told
    assert f"300 tokens, streamed, 100 a second {said}" in told


@pytest.mark.parametrize(("rate", "said"), [(80.0, "| 5.0 × | reached |"), (90.0, "| 4.4 × | **not reached** |")])
def test_requests_are_told_against_litellm(rate: float, said: str) -> None:
    assert f"| ≥ 5 × LiteLLM's requests/s, 20 tokens, whole {said}" in page(records(**{LITELLM: {"rate": rate}}))


def test_what_the_stand_in_itself_takes_is_taken_off_the_time_to_the_first_token() -> None:
    told = page(records(**{AURORA: {"first_p50_ms": 7.5}}))
    assert "| added time to first token p50 ≤ 6 ms at 1 connection, 20 tokens | 6.5 ms | **not reached** |" in told


def test_without_litellm_the_page_says_that_its_bar_was_not_measured() -> None:
    told = page(without_litellm())
    assert "no LiteLLM proxy, as it was not installed" in told
    assert "| ≥ 5 × LiteLLM's requests/s | not measured | **not reached** |" in told


def test_failed_requests_are_told_with_whose_they_are() -> None:
    data = records()
    data["measured"][2]["failures"] = 3
    assert f"Failed requests: 3 of {100 * len(data['measured']) + 3} (LiteLLM 3)." in page(data)


def test_the_page_keeps_its_other_parts(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.md"
    write_page(file, {"ollama": records()})
    assert "## One Ollama" in file.read_text()
    assert "## One machine" not in file.read_text()
