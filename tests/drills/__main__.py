"""`make drills`: do the runs whose records are missing, in the lab, and write docs/drills.md."""

import argparse
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from cluster.failures import LifecycleError
from cluster.lab import network
from cluster.lab.lab import Lab
from cluster.lab.up import bring_up, check_machine, take_down
from cluster.progress import Progress
from tests.drills import durability
from tests.drills.crowd_process import CrowdFailed
from tests.drills.faults import FAULTS, RUNS, Fault, fault
from tests.drills.page import render
from tests.drills.records import FOLDER, load_all, missing, path, save
from tests.drills.run import run
from tests.drills.stage import NotReady, Stage

PAGE = FOLDER.parent / "drills.md"
NOTES = FOLDER.parent / "drills-notes.md"
_TRIES = 3
"""How often a run is tried whose fault hits too little."""
LOCK = "\0aurora-drills"
"""Held while drills are under way: a name of the kernel's, gone with the process."""


def main() -> int:
    """Do what the command line says; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("--fault", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"up to so many runs of each (default {RUNS})")
    parser.add_argument("--durability", action="store_true", help="only the two drills of law 8, though they were done before")
    parser.add_argument("--list", action="store_true", help="show the faults and which runs there are")
    parser.add_argument("--page", action="store_true", help="only write the page")
    given = parser.parse_args()
    try:
        chosen = [fault(name) for name in given.fault] if given.fault else list(FAULTS)
    except ValueError as error:
        parser.error(str(error))
    if given.list:
        for each in chosen:
            there = sum(path(each.name, number).exists() for number in range(1, RUNS + 1))
            print(f"{each.name:20} {there:2} of {RUNS}  {each.title}")
        return 0
    if given.page:
        _write_page()
        return 0
    try:
        with _only_one():
            return _drill_and_write(chosen, given)
    except LifecycleError as error:
        print(f"{error}", file=sys.stderr)
        return 1


def _drill_and_write(chosen: list[Fault], given: argparse.Namespace) -> int:
    """Drill, and write the page of what there is then, however far it came."""
    try:
        law_8 = given.durability or (not given.fault and not durability.FILE.exists())
        _drill([] if given.durability else chosen, given.runs, law_8=law_8)
    except (LifecycleError, NotReady, CrowdFailed) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the runs that were done are kept, the next start goes on.", file=sys.stderr)
        return 130
    finally:
        _write_page()
    return 0


def _drill(chosen: list[Fault], runs: int, *, law_8: bool) -> None:
    todo = missing(chosen, runs=runs)
    print(f"{len(todo)} runs to do.", flush=True)
    with _lab() as lab:
        if law_8:
            print("\nThe drills of law 8", flush=True)
            say = _sayer()
            durability.drill(lab, Stage(lab, say), say)
        for place, (each, number) in enumerate(todo, 1):
            print(f"\n{place}/{len(todo)}  {each.name} {number}: {each.title}", flush=True)
            _one(lab, each, number)


@contextmanager
def _only_one() -> Iterator[None]:
    """Let nobody else drill in this machine's lab; the kernel ends the claim with the process.

    Raises:
        LifecycleError: somebody does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(LOCK)
        except OSError:
            raise LifecycleError("Drills are under way in the lab of this machine: wait for them to end, or stop them.") from None
        yield


@contextmanager
def _lab() -> Iterator[Lab]:
    """Give the lab of this machine; where there is none, one for the time being.

    Raises:
        LifecycleError: there can be none here; says why.
    """
    check_machine()
    ours = not network.existing()
    if ours:
        bring_up(Progress(Console()))
    try:
        with Lab() as lab:
            yield lab
    finally:
        if ours:
            take_down()


def _one(lab: Lab, each: Fault, number: int) -> None:
    say = _sayer()
    stage = Stage(lab, say)
    for attempt in range(_TRIES):
        record = run(lab, stage, each, number, zlib.crc32(f"{each.name} {number} {attempt}".encode()), say)
        save(record)
        counts = record.counts
        longest = max(record.pauses_s, default=0)
        say(
            f"asked {counts.asked}, complete {counts.complete} + {counts.complete_in_store} in the store, wrong {counts.wrong}, "
            f"lost {counts.pieces_lost}, repeated {counts.pieces_repeated}, longest pause {longest:.1f} s, "
            f"whole after {record.whole_after_s:.0f} s"
        )
        for problem in record.problems:
            say(f"! {problem}")
        if record.counted:
            return
        other_work = f"the load was late by {record.load_lag_s} s, as the machine has other work"
        why = other_work if record.disturbed else "the fault hit too little"
        say(f"it did not count: {why}")
    raise NotReady(f"{each.name} {number} did not count {_TRIES} times: {why}.")


def _sayer() -> Callable[[str], None]:
    """Return what shows a person how far it is, with the time since now."""
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"  {time.monotonic() - begun:6.1f} s  {what}", flush=True)

    return say


def _write_page() -> None:
    PAGE.write_text(render(load_all(), durability.load(), NOTES.read_text() if NOTES.exists() else ""))
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    sys.exit(main())
