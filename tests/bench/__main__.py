"""`make bench`: measure, and write docs/benchmarks.md.

Three parts, each by itself where it is named: `one-machine` (Aurora beside the seed's own idea), `ollama` (the same, and LiteLLM,
before one stand-in for Ollama) and `four-nodes` (the lab). Every figure on the page comes from `docs/benchmarks.json`, which this
writes too; a part that is not measured keeps what it had.
"""

import argparse
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cluster.failures import LifecycleError
from cluster.lab.up import unfit
from cluster.terminal import signals_as_interrupt
from tests.bench import four_nodes, one_machine, one_ollama
from tests.bench.four_nodes import LoadFailed
from tests.bench.page import write_page
from tests.bench.starting import NotStarted
from tests.drills.machine import machine, software
from tests.drills.stage import NotReady

ROOT = Path(__file__).resolve().parents[2]
ONE_MACHINE, OLLAMA, FOUR_NODES = "one-machine", "ollama", "four-nodes"
ROUNDS = {ONE_MACHINE: 5, OLLAMA: 3, FOUR_NODES: 3}


def main() -> int:
    """Measure and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=main.__doc__)
    parser.add_argument("part", nargs="?", choices=list(ROUNDS), help="only this one")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (default: 5; ollama and four nodes: 3)")
    parser.add_argument("--quick", action="store_true", help="ollama: a second per figure, to see that it works")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder of the page")
    given = parser.parse_args()
    parts = [given.part] if given.part else list(ROUNDS)
    if FOUR_NODES in parts and (reason := unfit()):
        print(f"Four nodes are not measured: {reason} The page keeps what it has of them.", file=sys.stderr)
        parts.remove(FOUR_NODES)
    given.out.mkdir(exist_ok=True)
    file = given.out / "benchmarks.json"
    data: dict[str, Any] = orjson.loads(file.read_bytes()) if file.exists() else {}
    try:
        with signals_as_interrupt():
            for part in parts:
                data |= _measure(part, given.rounds or ROUNDS[part], quick=given.quick)
                file.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
                write_page(given.out / "benchmarks.md", data)
                print(f"Written: {given.out / 'benchmarks.md'}")
    except (LifecycleError, NotReady, NotStarted, LoadFailed) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; what was not measured to its end is not written.", file=sys.stderr)
        return 130
    return 0 if parts else 1


def _measure(part: str, rounds: int, *, quick: bool) -> dict[str, Any]:
    facts = {"measured": datetime.now(UTC).strftime("%Y-%m-%d"), "python": platform.python_version(), **machine()}
    if part == ONE_MACHINE:
        return {"facts": facts, "rounds": one_machine.measure(rounds)}
    if part == OLLAMA:
        return {"ollama": {"facts": facts, **one_ollama.measure(rounds, quick=quick)}}
    measured = four_nodes.measure(rounds)
    return {"four_nodes": {"facts": {**facts, **software()}, **measured}}


if __name__ == "__main__":
    sys.exit(main())
