"""The checker of the drills complains about everything that the laws forbid, and about nothing else."""

import copy
from collections.abc import Sequence

import pytest

from serve_app.chat.events import Accepted, Done, End, Event, Failed, Piece, Receipt, Rewind, Started, Takeover
from serve_app.chat.messages import Message, Role
from tests.drills.checker import Verdict, judge
from tests.drills.counting import counts, detection
from tests.drills.pauses import longest_pauses, was_connected_to, was_generating_on
from tests.drills.reading import read
from tests.drills.seen import Asked, Device, Heard, Link, Way

TURN = "turn_" + "0" * 26
WORDS = ["You ", "speak ", "of ", "the ", "sea."]
TEXT = "".join(WORDS)


def accepted() -> Accepted:
    return Accepted(turn_id=TURN, conversation_id="conv_ann_1", message_seq=1)


def started(node: str = "star") -> Started:
    return Started(turn_id=TURN, conversation_id="conv_ann_1", personality="robbie", node=node, attempt=1)


def piece(seq: int, text: str = "", attempt: int = 1) -> Piece:
    return Piece(turn_id=TURN, seq=seq, attempt=attempt, text=text or WORDS[seq - 1])


def pieces(first: int, last: int, attempt: int = 1) -> list[Event]:
    return [piece(seq, attempt=attempt) for seq in range(first, last + 1)]


def takeover(attempt: int, after: int) -> Takeover:
    return Takeover(turn_id=TURN, attempt=attempt, after_seq=after, generated_on="iceland", reason="lost")


def rewind(to: int) -> Rewind:
    return Rewind(turn_id=TURN, to_seq=to)


def done(texts: Sequence[str] = WORDS) -> Done:
    return Done(turn_id=TURN, receipt=Receipt.of(texts), content="".join(texts))


def failed(texts: Sequence[str] = WORDS) -> Failed:
    return Failed(turn_id=TURN, receipt=Receipt.of(texts), code="engine_down", message="No.", retryable=True)


GOOD: list[Event] = [accepted(), started(), *pieces(1, 5), done()]


def device(*links: Sequence[Event], after: Sequence[int] = (0,)) -> Device:
    """A device that heard this over one connection after the other, an event every half second."""
    heard = [(link, event) for link, events in enumerate(links) for event in events]
    return Device(
        links=[Link("aurora", 100.0 + number, seq) for number, seq in enumerate(after)],
        heard=[Heard(100.5 + number / 2, link, event) for number, (link, event) in enumerate(heard)],
    )


def asked(*devices: Device, way: Way = "sse", divergent: bool = False) -> Asked:
    return Asked(
        client_id="ann", way=way, retries=True, door="aurora", personality="robbie", message="Tell me about the sea (1)",
        words=5, words_per_second=2.0, divergent=divergent, asked_at=100.0, acknowledged_at=100.5, ended_at=104.0,
        turn_id=TURN, devices=list(devices),
    )  # fmt: skip


def message(role: Role, content: str, **more: str) -> Message:
    return Message.model_validate(
        {"role": role, "content": content, "timestamp": "2025-10-06T12:00:00Z", "node": "aurora", "turn_id": TURN, **more}
    )


SENT = message(Role.USER, "Tell me about the sea (1)")
REPLY = message(Role.ASSISTANT, TEXT)
BEFORE = [message(Role.USER, "Hello", turn_id="another"), message(Role.ASSISTANT, "Hi!", turn_id="another")]
STORED = {"star": [*BEFORE, SENT, REPLY], "iceland": [*BEFORE, SENT, REPLY]}


def verdict(*devices: Device, stored: dict[str, list[Message]] = STORED) -> Verdict:
    return judge(asked(*devices), TEXT, stored)


def complaints(*events: Event) -> list[str]:
    """What is said about a device that heard this over one connection."""
    return verdict(device(events)).problems


def test_a_whole_answer_is_right_and_nothing_is_said_about_it() -> None:
    found = verdict(device(GOOD), device(GOOD))

    assert found.problems == []
    assert (found.complete, found.kept, found.ends, found.lost, found.repeated) == (True, True, 1, 0, 0)


def test_an_answer_over_three_connections_and_two_attempts_is_right() -> None:
    broken = device(
        [accepted(), started(), *pieces(1, 2)],
        [takeover(2, 2), piece(3, attempt=2)],
        [accepted(), started(), *pieces(1, 2), takeover(2, 2), *pieces(3, 5, attempt=2), done()],
        after=(0, 2, 0),
    )

    assert verdict(broken).problems == []
    assert read(broken).cuts == {2: 2}


def test_a_lost_piece_is_counted() -> None:
    found = verdict(device([accepted(), started(), *pieces(1, 2), *pieces(4, 5), done()]))

    assert found.lost == 1
    assert not found.complete


def test_a_last_piece_that_never_came_is_lost_by_the_receipt() -> None:
    found = verdict(device([accepted(), started(), *pieces(1, 4), done()]))

    assert found.lost == 1
    assert not found.complete


def test_a_piece_lost_at_a_reconnection_is_counted() -> None:
    found = verdict(device([accepted(), started(), *pieces(1, 2)], [*pieces(4, 5), done()], after=(0, 2)))

    assert found.lost == 1


def test_a_piece_that_a_takeover_left_out_is_lost() -> None:
    found = verdict(device([accepted(), started(), *pieces(1, 2), takeover(2, 3), *pieces(4, 5, attempt=2), done()]))

    assert found.lost == 1


def test_a_repeated_piece_is_counted() -> None:
    found = verdict(device([accepted(), started(), *pieces(1, 3), piece(3), *pieces(4, 5), done()]))

    assert found.repeated == 1
    assert not found.complete


def test_a_piece_from_before_the_position_asked_for_is_a_repeated_one() -> None:
    found = verdict(device([accepted(), started(), *pieces(1, 3)], [*pieces(3, 5), done()], after=(0, 3)))

    assert found.repeated == 1


def test_a_piece_that_comes_again_with_another_text_is_named() -> None:
    again = device([accepted(), started(), *pieces(1, 3)], [piece(1), piece(2, "talk "), *pieces(3, 5), done()], after=(0, 0))

    assert any("another one later" in problem for problem in verdict(again).problems)


@pytest.mark.parametrize("second", [done(), failed()])
def test_a_second_ending_is_named(second: End) -> None:
    found = verdict(device([*GOOD, second]))

    assert any("second ending" in problem for problem in found.problems)
    assert found.ends == 2


def test_two_devices_with_different_ends_are_two_ends() -> None:
    found = verdict(device(GOOD), device([accepted(), started(), *pieces(1, 5), failed()]))

    assert found.ends == 2
    assert not found.complete


def test_a_piece_after_the_end_is_named() -> None:
    assert any("after the end" in problem for problem in complaints(*GOOD, piece(6, "Yes.")))


def test_an_end_that_is_not_done_is_no_answer() -> None:
    assert not verdict(device([accepted(), started(), *pieces(1, 5), failed()])).complete


def test_a_wrong_receipt_is_named() -> None:
    wrong = Done(turn_id=TURN, receipt=Receipt(pieces=5, sha256="0" * 64), content=TEXT)

    assert any("receipt" in problem for problem in complaints(accepted(), started(), *pieces(1, 5), wrong))


def test_a_receipt_of_fewer_pieces_than_came_is_named() -> None:
    assert any("receipt" in problem for problem in complaints(accepted(), started(), *pieces(1, 5), done(WORDS[:4])))


def test_an_end_with_another_text_than_the_pieces_is_named() -> None:
    other = Done(turn_id=TURN, receipt=Receipt.of(WORDS), content="Something else.")

    assert any("another text" in problem for problem in complaints(accepted(), started(), *pieces(1, 5), other))


def test_an_attempt_that_goes_on_from_further_back_without_a_rewind_is_named() -> None:
    told = [accepted(), started(), *pieces(1, 3), takeover(2, 2), *pieces(3, 5, attempt=2), done()]

    assert any("nothing was taken back" in problem for problem in complaints(*told))


def test_a_rewind_takes_pieces_back_and_is_neither_loss_nor_repetition() -> None:
    told = [accepted(), started(), *pieces(1, 3), rewind(2), takeover(2, 2), *pieces(3, 5, attempt=2), done()]
    found = verdict(device(told))

    assert found.problems == []
    assert found.taken_back == 1


def test_two_writers_in_turn_are_named() -> None:
    told = [accepted(), started(), *pieces(1, 2), piece(3, attempt=2), *pieces(4, 5), done()]

    assert any("during attempt" in problem for problem in complaints(*told))


def test_an_event_of_another_turn_is_named() -> None:
    stray = Piece(turn_id="turn_" + "1" * 26, seq=3, attempt=1, text="of ")

    assert any("came in between" in problem for problem in complaints(accepted(), started(), *pieces(1, 2), stray))


def test_a_stored_reply_that_is_not_what_the_client_has_is_named() -> None:
    other = message(Role.ASSISTANT, "Something else.")
    found = verdict(device(GOOD), stored={"star": [SENT, other], "iceland": [SENT, other]})

    assert any("not what the client has" in problem for problem in found.problems)


def test_two_nodes_that_tell_different_histories_are_named() -> None:
    found = verdict(device(GOOD), stored={"star": [SENT, REPLY], "iceland": [SENT]})

    assert any("different histories" in problem for problem in found.problems)


def test_an_acknowledged_message_that_is_not_there_is_lost() -> None:
    found = verdict(device([accepted(), started()]), stored={"star": BEFORE, "iceland": BEFORE})

    assert found.acknowledged_lost
    assert any("acknowledged" in problem for problem in found.problems)


def test_a_message_that_is_there_twice_is_named() -> None:
    twice = [SENT, REPLY, SENT, REPLY]
    found = verdict(device(GOOD), stored={"star": twice, "iceland": twice})

    assert any("2 times" in problem for problem in found.problems)


def test_two_stored_replies_are_two_ends() -> None:
    twice = [SENT, REPLY, REPLY]
    found = verdict(device(GOOD), stored={"star": twice, "iceland": twice})

    assert found.ends == 2
    assert any("2 replies" in problem for problem in found.problems)


def test_a_kept_message_without_a_reply_is_named() -> None:
    found = verdict(device([accepted(), started()]), stored={"star": [SENT], "iceland": [SENT]})

    assert any("never answered" in problem for problem in found.problems)


def test_a_client_that_does_not_try_again_has_its_answer_in_the_store() -> None:
    given_up = asked(device([accepted(), started(), *pieces(1, 2)]))
    given_up.retries, given_up.ended_at = False, None
    found = judge(given_up, TEXT, STORED)

    assert found.problems == []
    assert (found.complete, found.complete_in_store) == (False, True)


def test_a_wrong_answer_in_the_store_is_named_even_if_nobody_waited_for_it() -> None:
    given_up = asked(device([accepted(), started(), *pieces(1, 2)]))
    given_up.retries, given_up.ended_at = False, None
    found = judge(given_up, "Another text was right.", STORED)

    assert not found.complete_in_store
    assert any("not the undisturbed one" in problem for problem in found.problems)


def test_a_client_that_tries_again_and_has_no_answer_is_named() -> None:
    unheard = asked(device([]))
    unheard.acknowledged_at = None
    found = judge(unheard, TEXT, {"star": BEFORE, "iceland": BEFORE})

    assert any("had no answer" in problem for problem in found.problems)
    assert not found.kept


def test_a_second_device_that_never_saw_the_end_is_named_with_when_it_was_there() -> None:
    short = device(GOOD[:-1], after=(0, 0))
    short.links[0].lost = "no pong"
    problem = "device 2 never saw the end (aurora from 0.0 s, lost: no pong; aurora from 1.0 s; heard last: piece at 3.5 s)"
    assert problem in verdict(device(GOOD), short).problems
    assert "device 2 never saw the end (never connected)" in verdict(device(GOOD), Device()).problems


def by_rest(text: str = TEXT, of: str = TEXT, status: str = "done") -> Asked:
    sent = asked(way="rest")
    sent.answer = {"response": text, "status": status, "receipt": Receipt.of([of]).model_dump()}
    return sent


def test_an_answer_by_rest_is_right_to_the_letter() -> None:
    assert judge(by_rest(), TEXT, STORED).complete


@pytest.mark.parametrize("wrong", [by_rest(TEXT[:-1]), by_rest(of="Another text."), by_rest(status="stopped")])
def test_an_answer_by_rest_that_is_cut_or_unproven_or_stopped_is_named(wrong: Asked) -> None:
    assert judge(wrong, TEXT, STORED).problems


MARKED = ["You~aaaaaa ", "speak~aaaaaa ", "of~bbbbbb ", "the~bbbbbb ", "sea.~bbbbbb"]


def marked(words: Sequence[str], cut: int) -> Verdict:
    """A divergent reply of these words, taken over after piece `cut`, as one device heard it and as it is stored."""
    first = [piece(seq, words[seq - 1]) for seq in range(1, cut + 1)]
    second = [piece(seq, words[seq - 1], attempt=2) for seq in range(cut + 1, len(words) + 1)]
    heard = device([accepted(), started(), *first, takeover(2, cut), *second, done(words)])
    reply = message(Role.ASSISTANT, "".join(words))
    return judge(asked(heard, divergent=True), TEXT, {"star": [SENT, reply], "iceland": [SENT, reply]})


def test_a_divergent_answer_is_one_stretch_per_attempt() -> None:
    assert marked(MARKED, 2).problems == []


@pytest.mark.parametrize(
    "words",
    [
        ["You~aaaaaa ", "speak~aaaaaa ", "You~bbbbbb ", "speak~bbbbbb ", "of~bbbbbb"],  # a restart passed off as a continuation
        ["You~aaaaaa ", "speak~bbbbbb ", "of~aaaaaa ", "the~bbbbbb ", "sea.~bbbbbb"],  # two writers at once
        ["You~aaaaaa ", "speak~aaaaaa ", "of~aaaaaa ", "the~bbbbbb ", "sea.~bbbbbb"],  # the cut is not where the takeover says
        ["You~aaaaaa ", "speak~aaaaaa ", "of~aaaaaa ", "the~aaaaaa ", "sea.~aaaaaa"],  # the dead run writes on
        ["You~aaaaaa ", "speak~aaaaaa ", "the~bbbbbb ", "sea.~bbbbbb"],  # a word is missing
    ],
)
def test_a_divergent_answer_that_mixes_restarts_or_drops_words_is_named(words: list[str]) -> None:
    assert marked(words, 2).problems


def test_a_pause_is_what_a_reader_waits_beyond_the_rhythm_of_the_script() -> None:
    heard = device([accepted(), started(), *pieces(1, 5), done()])
    assert longest_pauses(asked(heard)) == [pytest.approx(1.0)]  # accepted, started, first piece: half a second each

    late = copy.deepcopy(heard)
    for place in range(4, len(late.heard)):
        late.heard[place].at += 3.0
    assert longest_pauses(asked(heard, late)) == [pytest.approx(1.0), pytest.approx(3.0)]


def test_pieces_that_come_again_do_not_shorten_a_pause() -> None:
    again = device([accepted(), started(), *pieces(1, 3)], [*pieces(1, 5), done()], after=(0, 0))

    assert longest_pauses(asked(again)) == [pytest.approx(1.5)]  # four half seconds from piece 3 to piece 4, less one interval


def test_the_pause_of_a_rest_client_is_the_delay_of_its_answer() -> None:
    assert longest_pauses(by_rest()) == [pytest.approx(2.0)]  # four seconds for five words, two a second


def test_a_fault_hits_a_turn_between_its_first_piece_and_its_end_on_the_node_that_generates_it() -> None:
    told = asked(device([accepted(), started("star"), *pieces(1, 2), takeover(2, 2), *pieces(3, 5, attempt=2), done()]))
    reading = read(told.devices[0])  # the first piece comes at 101.5, the takeover at 102.5, the end at 104.5

    assert [was_generating_on(told, reading, {"star"}, at) for at in (101.4, 101.6, 102.6)] == [False, True, False]
    assert [was_generating_on(told, reading, {"iceland"}, at) for at in (101.6, 102.6, 104.6)] == [False, True, False]


def test_a_device_is_connected_to_the_door_it_went_to_last() -> None:
    moved = Device(links=[Link("aurora", 100.0), Link("star", 105.0)])

    assert was_connected_to(moved, {"aurora"}, 104.0)
    assert not was_connected_to(moved, {"aurora"}, 106.0)


def test_only_who_heard_of_a_takeover_is_counted_as_taken_over() -> None:
    again: list[Event] = [accepted(), started(), *pieces(1, 5), done()]
    came_back = device([accepted(), started(), *pieces(1, 2)], again, after=(0, 0))
    verdicts = [verdict(came_back)]
    assert counts(verdicts).takeovers == 0

    taken_over = device([accepted(), started(), *pieces(1, 2), takeover(2, 2), *pieces(3, 5, attempt=2), done()])
    verdicts.append(verdict(taken_over))
    assert counts(verdicts).takeovers == 1
    assert detection(verdicts, 101.0) == [1.5]
