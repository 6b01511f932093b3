"""From the records to docs/drills.md. Nothing on the page comes from anywhere else but the notes, which are written by hand."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tests.drills import availability, prose
from tests.drills.bars import bars, quantile
from tests.drills.crowd import CROWD
from tests.drills.durability import Durability
from tests.drills.faults import ENOUGH, FAULTS, RUNS, Fault
from tests.drills.records import UNDISTURBED_S, Record


def render(records: Sequence[Record], durability: Durability | None = None, notes: str = "") -> str:
    """Return the page."""
    counted = [record for record in records if record.counted]
    by_fault = [(fault, [r for r in counted if r.fault == fault.name]) for fault in FAULTS]
    done = [(fault, runs) for fault, runs in by_fault if runs]
    kinds = "; ".join(f"{kind.count} {kind.name}" for kind in CROWD)
    parts = [prose.HEAD, "\n".join(_summary(by_fault, records)), prose.MEASURED.format(kinds=kinds, enough=ENOUGH)]
    if done:
        parts += ["\n".join(table) + "\n" for table in (_answers(done), _requests(done), _pauses(done), _bars(done))]
        parts.append("\n".join(_availability(done)) + "\n")
    if durability:
        parts.append("\n".join(_durability(durability)) + "\n")
    if notes.strip():
        parts.append(notes.strip() + "\n")
    return "\n".join([*parts, prose.RUNNING])


def _summary(by_fault: Iterable[tuple[Fault, list[Record]]], records: Sequence[Record]) -> Iterator[str]:
    counted = [record for record in records if record.counted]
    if not counted:
        yield "No run has been done yet.\n"
        return
    latest = max(counted, key=lambda record: record.started)
    first, last, machine = min(record.started for record in counted)[:10], latest.started[:10], latest.machine
    yield (
        f"{len(counted)} runs of {RUNS * len(FAULTS)}, {first} to {last}, on {machine['cores']} cores ({machine['processor']}) "
        "for all four nodes, the clients and the balancer together. "
        f"Ray {latest.software['ray']}, Redis {latest.software['redis']}, Python {latest.software['python']}. "
        f"Aurora and its commits (+: with changes not committed), by runs: {_versions(counted)}."
    )
    short = [f"{fault.name} {len(runs)}" for fault, runs in by_fault if len(runs) < RUNS]
    if short:
        yield f"Fewer than {RUNS} runs: {', '.join(short)}."
    missed = [record for record in records if not record.counted]
    if missed:
        yield _not_counted(missed)
    reached = _reached((fault, runs) for fault, runs in by_fault if runs)
    yield f"**{sum(reached)} of {len(reached)} bars are reached**, each by itself below."
    if missed:
        all_runs = ((fault, [record for record in records if record.fault == fault.name]) for fault in FAULTS)
        reached = _reached((fault, runs) for fault, runs in all_runs if runs)
        yield f"With the runs that did not count: {sum(reached)} of {len(reached)}."
    yield ""


def _reached(done: Iterable[tuple[Fault, list[Record]]]) -> list[bool]:
    return [bar.reached for fault, runs in done for bar in bars(fault, runs).values()]


def _versions(records: Iterable[Record]) -> str:
    runs = Counter(record.software["aurora"] for record in records)
    return ", ".join(f"{version} {count}" for version, count in runs.most_common())


def _not_counted(records: Sequence[Record]) -> str:
    disturbed = sum(record.disturbed for record in records)
    counts = [record.counts for record in records]
    return (
        f"{len(records)} runs more did not count; their records are kept apart. The fault of {len(records) - disturbed} hit too "
        f"little; in {disturbed} the machine had other work: the load itself was late by more than {UNDISTURBED_S} s. "
        f"In all of them together: wrong {sum(each.wrong for each in counts)}, "
        f"lost {sum(each.pieces_lost for each in counts)}, repeated {sum(each.pieces_repeated for each in counts)}, "
        f"acknowledged lost {sum(each.acknowledged_lost for each in counts)}."
    )


def _answers(done: Iterable[tuple[Fault, list[Record]]]) -> Iterator[str]:
    yield "## Answers\n"
    yield (
        "| fault | runs | asked | complete | in the store | refused | **wrong** | **lost** | **repeated** | taken back "
        "| **ends ≠ 1** | acknowledged | **of these lost** |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for fault, runs in done:
        counts = [run.counts for run in runs]
        cells = [
            len(runs),
            *(
                sum(getattr(c, name) for c in counts)
                for name in ("asked", "complete", "complete_in_store", "never_accepted", "wrong")
            ),
            *(sum(getattr(c, name) for c in counts) for name in ("pieces_lost", "pieces_repeated", "pieces_taken_back")),
            sum(turns for c in counts for ends, turns in c.ends.items() if ends != 1),
            sum(c.acknowledged for c in counts),
            sum(c.acknowledged_lost for c in counts),
        ]
        yield f"| {fault.title} | {' | '.join(map(str, cells))} |"


def _requests(done: Iterable[tuple[Fault, list[Record]]]) -> Iterator[str]:
    yield "## Failed requests\n"
    yield (
        "Requests of clients that try once, by where they went; messages of clients that go on and never had their answer; "
        "takeovers after the fault, as clients that go on heard of them.\n"
    )
    yield "| fault | once, at the victim | once, elsewhere | once, through the balancer | going on | reconnections | takeovers |"
    yield "|---|---|---|---|---|---|---|"
    for fault, runs in done:
        failed = [run.failed for run in runs]
        names = ("once_at_victim", "once_elsewhere", "once_by_balancer", "going_on", "reconnections")
        cells = [sum(getattr(each, name) for each in failed) for name in names]
        yield f"| {fault.title} | {' | '.join(map(str, [*cells, sum(len(run.detection_s) for run in runs)]))} |"


def _pauses(done: Sequence[tuple[Fault, list[Record]]]) -> Iterator[str]:
    yield "## Pauses and repair\n"
    late = max(run.load_lag_s for _, runs in done for run in runs)
    yield f"Seconds. The load itself was late by at most {late:g} s: that is how exact a pause is.\n"
    yield (
        "| fault | pause p50 | p99 | max | met: p50 | p99 | detection p50 | max | once: max | whole again, median | max "
        "| least and most hit |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for fault, runs in done:
        pauses, met, detection, once = (
            [value for run in runs for value in getattr(run, name)]
            for name in ("pauses_s", "pauses_hit_s", "detection_s", "pauses_once_s")
        )
        if fault.deed == "restart-each":
            detection = []  # nobody has to notice anything: the nodes leave, and those after the first one long after "the fault"
        whole = [run.whole_after_s for run in runs]
        met_turns = [_hit(fault, run) for run in runs]
        cells = [
            _seconds(pauses, 0.5), _seconds(pauses, 0.99), _seconds(pauses, 1), _seconds(met, 0.5), _seconds(met, 0.99),
            _seconds(detection, 0.5), _seconds(detection, 1), _seconds(once, 1),
            f"{statistics.median(whole):.0f}", f"{max(whole):.0f}", f"{min(met_turns)}–{max(met_turns)}",
        ]  # fmt: skip
        yield f"| {fault.title} | {' | '.join(cells)} |"


def _bars(done: Sequence[tuple[Fault, list[Record]]]) -> Iterator[str]:
    yield "## Bars\n"
    yield "✓ reached, **✗** not. *Left*: clients that go on and had no answer. *Failed*: requests through the balancer.\n"
    titles = dict.fromkeys(title for fault, runs in done for title in bars(fault, runs))
    yield f"| fault | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for fault, runs in done:
        found = bars(fault, runs)
        cells = [found[title].shown if title in found else "–" for title in titles]
        yield f"| {fault.title} | {' | '.join(cells)} |"


def _availability(done: Sequence[tuple[Fault, list[Record]]]) -> Iterator[str]:
    yield "## Availability, as users saw it\n"
    allowed = (1 - availability.TARGET) * availability.MONTH_S
    yield prose.AVAILABILITY.format(target=f"{availability.TARGET:.2%}", allowed=f"{allowed:.0f}")
    yield (
        "| fault | bad seconds of a door per fault | of the balancer | dark | seconds not bad, in the runs | faults a month "
        "| by the balancer |"
    )
    yield "|---|---|---|---|---|---|---|"
    for fault, runs in done:
        bad = availability.bad_per_fault([run.doors for run in runs])
        balancers = [len(run.doors["balancer"].bad) for run in runs if "balancer" in run.doors]
        by_balancer = statistics.mean(balancers) if balancers else 0.0
        seconds = sum(door.seconds for run in runs for door in run.doors.values())
        spoilt = sum(len(door.bad) for run in runs for door in run.doors.values())
        dark = statistics.mean(len(run.dark) for run in runs)
        yield (
            f"| {fault.title} | {bad:.2f} | {by_balancer:.2f} | {dark:.2f} | {1 - spoilt / seconds if seconds else 0:.2%} "
            f"| {_a_month(bad)} | {_a_month(by_balancer)} |"
        )


def _a_month(bad_s: float) -> str:
    faults = availability.faults_per_month(bad_s)
    return "any number" if faults == float("inf") else f"{faults:.0f}"


def _durability(done: Durability) -> Iterator[str]:
    frozen, killed = done.frozen, done.killed
    yield "## Durability (law 8)\n"
    yield prose.FROZEN.format(**frozen.model_dump())
    yield "| bar | this is | |"
    yield "|---|---|---|"
    reached = [
        ("nothing is answered with 200", frozen.answered == 0, str(frozen.answered)),
        ("no `accepted`", frozen.accepted == 0, str(frozen.accepted)),
        ("no end", frozen.ended == 0, str(frozen.ended)),
        ("every answer whole, once one is back", not frozen.problems, f"{frozen.complete} of {_all(done)}"),
    ]
    yield from (f"| {bar} | {value} | {_word(fine)} |" for bar, fine, value in reached)
    for problem in frozen.problems:
        yield f"- {problem}"
    ages, again = [age for age in killed.before_kill_ms if age >= 0], killed.again_after_s
    yield "\n" + prose.KILLED.format(
        kills=killed.kills,
        before=len(ages),
        median=f"{quantile(ages, 0.5):.1f}",
        oldest=f"{max(ages):.0f}",
        again=f"{quantile(again, 0.5):.1f}",
        longest=f"{max(again):.1f}",
    )
    fine = killed.found == killed.acknowledged
    yield f"**{killed.found} of {killed.acknowledged}** acknowledged messages are there, once, on two nodes: {_word(fine)}."


def _all(done: Durability) -> int:
    return done.frozen.asked_before + done.frozen.asked_meanwhile


def _word(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _hit(fault: Fault, run: Record) -> int:
    hit = run.hit
    return {
        "writer": hit.turns_generated_by_victim,
        "door": hit.connections_at_victim,
        "door-and-writer": min(hit.turns_generated_by_victim, hit.connections_at_victim),
        "turn": hit.turns_open,
    }[fault.hit]


def _seconds(values: Sequence[float], q: float) -> str:
    return f"{quantile(values, q):.1f}" if values else "–"
