"""What a follower's stopwatch says: the wait for the first piece, and the pause at a takeover."""

import pytest

from serve_app.chat.events import Event, Piece, Takeover
from serve_app.chat.meter import FIRST_PIECE, TAKEOVER_PAUSE
from serve_app.chat.stopwatch import Stopwatch
from tests.support.metering import Tally
from tests.support.turn_tools import ending

TURN = "turn_" + "a" * 26
END: Event = ending(TURN, ["one"])


def piece(seq: int, attempt: int = 1) -> Event:
    return Piece(turn_id=TURN, seq=seq, attempt=attempt, text="one")


def takeover(after: int, attempt: int = 2) -> Event:
    return Takeover(turn_id=TURN, attempt=attempt, after_seq=after, generated_on="star", reason="lost")


class Clock:
    """Stands still until it is put forward."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    def __init__(self, *, fresh: bool) -> None:
        self.tally, self.clock = Tally(), Clock()
        self.watch = Stopwatch(self.tally, fresh=fresh, clock=self.clock)

    def after(self, seconds: float, *events: Event, caught_up: bool = True) -> None:
        self.clock.now += seconds
        self.watch.saw(events, caught_up=caught_up)

    @property
    def pauses(self) -> list[float]:
        return self.tally.values[(TAKEOVER_PAUSE.name,)]

    @property
    def firsts(self) -> list[float]:
        return self.tally.values[(FIRST_PIECE.name,)]


def test_the_first_piece_of_a_fresh_turn_is_timed_once() -> None:
    watched = Watched(fresh=True)
    watched.after(0.5)
    watched.after(0.25, piece(1))
    watched.after(3, piece(2), END)
    assert watched.firsts == [0.75]


def test_a_follower_that_came_later_times_no_first_piece() -> None:
    watched = Watched(fresh=False)
    watched.after(1, piece(1), piece(2))
    watched.after(1, piece(3), END)
    assert watched.firsts == []


def test_a_turn_without_a_piece_has_no_first_piece() -> None:
    watched = Watched(fresh=True)
    watched.after(1, END)
    assert watched.firsts == []


def test_the_pause_of_a_takeover_is_from_the_last_piece_before_it_to_the_first_after_it() -> None:
    watched = Watched(fresh=True)
    watched.after(1, piece(1))
    watched.after(2, takeover(1))
    watched.after(0.5, piece(2, 2))
    watched.after(1, piece(3, 2), END)
    assert watched.pauses == [2.5]


def test_two_takeovers_without_a_piece_between_them_are_one_pause() -> None:
    watched = Watched(fresh=True)
    watched.after(1, piece(1))
    watched.after(2, takeover(1))
    watched.after(3, takeover(1, 3))
    watched.after(1, piece(2, 3))
    assert watched.pauses == [6]


def test_a_pause_that_only_the_end_ends_counts() -> None:
    watched = Watched(fresh=True)
    watched.after(1, piece(1))
    watched.after(4, takeover(1), END)
    assert watched.pauses == [4]


def test_what_came_late_and_together_is_a_pause_of_all_the_time_it_was_late() -> None:
    watched = Watched(fresh=True)
    watched.after(1, piece(1))
    watched.after(5, piece(2), takeover(2), piece(3, 2))
    assert watched.pauses == [5]


@pytest.mark.parametrize("empty_reads", [0, 2])
def test_a_takeover_before_the_following_began_is_nobodys_pause(empty_reads: int) -> None:
    watched = Watched(fresh=False)
    for _ in range(empty_reads):
        watched.after(1, caught_up=False)
    watched.after(1, piece(1), takeover(1), piece(2, 2))
    assert watched.pauses == []
    watched.after(1, takeover(2, 3))
    watched.after(1, piece(3, 3))
    assert watched.pauses == [2]
