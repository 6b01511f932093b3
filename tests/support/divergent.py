"""What the scripted engine's divergent mode proves: every word carries the mark of the run that wrote it.

A reply must then consist of contiguous stretches, one per attempt that wrote anything, cut exactly where the takeovers say.
A restart passed off as a continuation, two writers at once, a silent mix of two texts: each of them shows here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise

from serve_app.chat.events import Piece
from serve_app.client import Stretch

_MARKED = re.compile(r"(.*)~([0-9a-f]{6})")


def marks(text: str) -> set[str]:
    """The marks of the runs that wrote `text`."""
    return set(re.findall(r"~([0-9a-f]{6})", text))


def stretches_of(pieces: Iterable[Piece]) -> list[Stretch]:
    """Which attempt wrote which pieces."""
    found = []
    for attempt, group in groupby(pieces, key=lambda piece: piece.attempt):
        written = list(group)
        found.append(Stretch(attempt, written[0].seq, written[-1].seq, "".join(piece.text for piece in written)))
    return found


def stretch_breaches(stretches: Sequence[Stretch], cuts: Mapping[int, int]) -> list[str]:
    """Say what is wrong with the stretches of a reply; `cuts`: for each attempt that took over, the piece it went on after."""
    found = [
        f"{len(marks(stretch.text))} runs wrote pieces {stretch.first} to {stretch.last}, all of attempt {stretch.attempt}"
        for stretch in stretches
        if len(marks(stretch.text)) != 1
    ]
    if len({mark for stretch in stretches for mark in marks(stretch.text)}) < len(stretches):
        found.append("one run wrote under two attempts")
    for before, stretch in pairwise(stretches):
        if stretch.first != before.last + 1:
            found.append(f"between attempts {before.attempt} and {stretch.attempt} pieces are missing")
        if cuts.get(stretch.attempt) != before.last:
            said = cuts.get(stretch.attempt, "nowhere")
            found.append(f"attempt {stretch.attempt} wrote from piece {stretch.first} on, and took over after {said}")
    return found


def text_breaches(text: str, undisturbed: str) -> list[str]:
    """Say what is wrong with a whole divergent reply: its words are the undisturbed ones, and no run comes back."""
    wanted, words = undisturbed.split(), text.split()
    found = []
    if len(words) != len(wanted):
        found.append(f"{len(words)} words instead of {len(wanted)}")
    runs = []
    for place, (word, right) in enumerate(zip(words, wanted, strict=False), 1):
        marked = _MARKED.fullmatch(word)
        if marked is None or marked[1] != right:
            found.append(f"word {place} is {word!r} instead of {right!r}")
            break
        runs.append(marked[2])
    written = [mark for mark, _ in groupby(runs)]
    if len(written) != len(set(written)):
        found.append("a run wrote on after another had taken over")
    return found
