"""A follower's position: what an event, or the log, means for somebody who has seen so much already."""

from serve_app.chat.events import Event, Piece, Rewind, Takeover
from serve_app.chat.follow import Position
from serve_app.chat.turns import Snapshot

TURN = "turn_" + "a" * 26


def piece(seq: int, attempt: int) -> Piece:
    return Piece(turn_id=TURN, seq=seq, attempt=attempt, text=f"{attempt}:{seq} ")


def log_of(*events: Event, seq: int, attempt: int) -> Snapshot:
    facts = {"client_id": "somebody", "conversation_id": "conv_somebody_1", "personality": "robbie", "created": ""}
    rest = {"state": "open", "message_seq": 1, "end": None, "kept": True, "reply": None, **facts}
    return Snapshot(turn_id=TURN, attempt=attempt, seq=seq, events=events, **rest)  # type: ignore[arg-type]


WHOLE: list[Event] = [
    *(piece(n, 1) for n in range(1, 9)),
    Takeover(turn_id=TURN, attempt=2, after_seq=8, generated_on="star", reason="lost"),
    *(piece(n, 2) for n in range(9, 13)),
]
"""Attempt 1 had said ten pieces; a failover lost 9 and 10, and attempt 2 went on after 8."""


def test_who_resumes_with_a_piece_that_was_lost_since_gets_a_rewind_before_the_new_ones() -> None:
    position = Position(10, attempt=1)
    beyond = [event for event in WHOLE if isinstance(event, Piece) and event.seq > 10]
    passed, again = position.apply_log(log_of(*beyond, seq=12, attempt=2))
    assert (passed, again) == ([], True), "pieces of another attempt must not be glued to what was lost"
    passed, again = position.apply_log(log_of(*WHOLE, seq=12, attempt=2))
    assert not again
    assert passed[0] == Rewind(turn_id=TURN, to_seq=8)
    assert [event.seq for event in passed if isinstance(event, Piece)] == [9, 10, 11, 12]


def test_who_resumes_with_pieces_that_still_stand_gets_only_the_rest() -> None:
    position = Position(5, attempt=1)
    beyond = [event for event in WHOLE if not isinstance(event, Piece) or event.seq > 5]
    passed, again = position.apply_log(log_of(*beyond, seq=12, attempt=2))
    assert not again
    assert [event.seq for event in passed if isinstance(event, Piece)] == list(range(6, 13))
    assert not any(isinstance(event, Rewind) for event in passed)


def test_who_resumes_from_beyond_the_log_without_knowing_the_attempt_starts_over() -> None:
    position = Position(20)
    assert position.apply_log(log_of(seq=12, attempt=2)) == ([Rewind(turn_id=TURN, to_seq=0)], True)
    passed, again = position.apply_log(log_of(*WHOLE, seq=12, attempt=2))
    assert not again
    assert [event.seq for event in passed if isinstance(event, Piece)] == list(range(1, 13))


def test_who_resumes_with_an_attempt_that_never_was_starts_over_and_is_not_left_without_pieces() -> None:
    position = Position(2, attempt=9)
    beyond = [event for event in WHOLE if not isinstance(event, Piece) or event.seq > 2]
    assert position.apply_log(log_of(*beyond, seq=12, attempt=2)) == ([Rewind(turn_id=TURN, to_seq=0)], True)
    passed, again = position.apply_log(log_of(*WHOLE, seq=12, attempt=2))
    assert not again
    assert [event.seq for event in passed if isinstance(event, Piece)] == list(range(1, 13))
