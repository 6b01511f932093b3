"""The client's side of laws 1, 2 and 10: what is put together is the reply, and whatever contradicts it is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.chat.events import Accepted, Done, Event, Failed, Piece, Receipt, Rewind, Started, Stopped, Takeover
from serve_app.client import Assembly, Broken, BrokenPromise, Stretch

TURN = "turn_" + "0" * 26


def piece(seq: int, text: str = "", attempt: int = 1) -> Piece:
    return Piece(turn_id=TURN, seq=seq, attempt=attempt, text=text or f"w{seq} ")


def takeover(attempt: int, after: int) -> Takeover:
    return Takeover(turn_id=TURN, attempt=attempt, after_seq=after, generated_on="star", reason="lost")


def started() -> Started:
    return Started(turn_id=TURN, conversation_id="conv_u_1", personality="robbie", node="aurora", attempt=1)


def accepted() -> Accepted:
    return Accepted(turn_id=TURN, conversation_id="conv_u_1", message_seq=1, personality="robbie")


def done(*texts: str, content: str = "", recovered: bool = True) -> Done:
    return Done(turn_id=TURN, receipt=Receipt.of(texts), content=content, recovered=recovered)


def fed(*events: Event) -> Assembly:
    """Feed the events of one connection, none of which may leave something missing."""
    assembly = Assembly()
    for event in events:
        assert assembly.take(event) is not None
    return assembly


def assembled(events: list[Event]) -> str:
    """Return the whole reply that these events of one connection make."""
    assembly = Assembly()
    for event in events:
        assembly.take(event)
    return assembly.whole()


def broken_by(*events: Event) -> Broken:
    """Say which promise the last of these events breaks; the ones before keep them all."""
    assembly = fed(*events[:-1])
    with pytest.raises(BrokenPromise) as caught:
        assembly.take(events[-1])
    return caught.value.what


def test_pieces_join_to_the_reply_that_the_receipt_proves() -> None:
    assembly = fed(accepted(), started(), piece(1, "Hé"), piece(2, "llo\u2028"), done("Hé", "llo\u2028", content="Héllo\u2028"))

    assert assembly.whole() == "Héllo\u2028"
    assert (assembly.seq, assembly.attempt, assembly.conversation_id) == (2, 1, "conv_u_1")


def test_a_repeated_event_changes_nothing_and_is_no_news() -> None:
    assembly = fed(accepted(), started(), piece(1), takeover(2, 1), piece(2, attempt=2))

    for event in (accepted(), started(), piece(1), takeover(2, 1), piece(2, attempt=2)):
        assert assembly.take(event, over="another") == []

    assert assembly.text == "w1 w2 "


def test_stretches_say_which_attempt_wrote_what_and_cuts_where_it_went_on() -> None:
    assembly = fed(
        started(), piece(1), piece(2), takeover(2, 2), piece(3, attempt=2), takeover(3, 3), takeover(4, 3), piece(4, attempt=4)
    )

    assert assembly.stretches == [Stretch(1, 1, 2, "w1 w2 "), Stretch(2, 3, 3, "w3 "), Stretch(4, 4, 4, "w4 ")]
    assert assembly.cuts == {2: 2, 3: 3, 4: 3}


def test_a_missing_piece_asks_for_a_resume_and_changes_nothing() -> None:
    assembly = fed(started(), piece(1))

    assert assembly.take(piece(3)) is None
    assert assembly.take(takeover(2, 2)) is None
    assert assembly.take(done("w1 ", "w2 ")) is None
    assert (assembly.seq, assembly.end) == (1, None)

    assert assembly.take(piece(2), over="another") == [piece(2)]
    assert assembly.take(done("w1 ", "w2 "), over="another") == [done("w1 ", "w2 ")]
    assert assembly.whole() == "w1 w2 "


def test_a_rewind_drops_what_lies_beyond_and_what_comes_then_may_be_another_text() -> None:
    assembly = fed(started(), piece(1), piece(2, "lost "), Rewind(turn_id=TURN, to_seq=1), takeover(2, 1), piece(2, "kept ", 2))

    assert assembly.text == "w1 kept "
    assert assembly.take(done("w1 ", "kept ")) is not None


@pytest.mark.parametrize("after", [1, 2])
def test_a_rewind_takes_back_the_takeovers_beyond_it_too(after: int) -> None:
    """After a failover two runs may hold the same number; the second one's takeover must count, wherever it goes on."""
    assembly = fed(started(), piece(1), piece(2), takeover(2, 2), piece(3, "a ", 2), Rewind(turn_id=TURN, to_seq=after))

    assert assembly.take(takeover(2, after)) == [takeover(2, after)]
    assert assembly.take(piece(after + 1, "b ", 2)) == [piece(after + 1, "b ", 2)]
    assert assembly.cuts == {2: after}


@pytest.mark.parametrize("kind", ["failed", "stopped"])
def test_every_kind_of_end_is_proven_by_its_receipt(kind: str) -> None:
    receipt = Receipt.of(["w1 "])
    ends: dict[str, Failed | Stopped] = {
        "failed": Failed(turn_id=TURN, receipt=receipt, code="engine_error", message="No.", retryable=True),
        "stopped": Stopped(turn_id=TURN, receipt=receipt),
    }

    assert fed(started(), piece(1), ends[kind]).whole() == "w1 "
    assert broken_by(started(), piece(1, "other "), ends[kind]) is Broken.WRONG_RECEIPT


def test_a_recovered_message_is_taken_whole() -> None:
    end = done("w1 ", "w2 ", "w3 ", content="w1 w2 w3 ", recovered=False)
    assembly = fed(started(), piece(1))

    assert assembly.take(end, over="later") == [end]
    assert assembly.whole() == "w1 w2 w3 "


def test_a_recovered_message_with_another_beginning_takes_back_what_came_before() -> None:
    end = done("w1 ", content="w1 ", recovered=False)
    assembly = fed(started(), piece(1, "lost "))

    assert assembly.take(end, over="later") == [Rewind(turn_id=TURN, to_seq=0), end]
    assert assembly.whole() == "w1 "


def test_a_recovered_message_that_is_not_the_receipts_is_refused() -> None:
    assert broken_by(started(), done("w1 ", content="forged", recovered=False)) is Broken.WRONG_RECEIPT
    assert broken_by(started(), done("w1 ", content="", recovered=False)) is Broken.LOST_PIECE


def test_a_lost_piece_is_found() -> None:
    assembly = fed(started(), piece(1))
    assembly.take(piece(3))
    assembly.take(done("w1 ", "w2 ", "w3 "))

    with pytest.raises(BrokenPromise) as caught:
        assembly.whole()
    assert caught.value.what is Broken.LOST_PIECE
    assert "nothing after piece 1" in str(caught.value)


def test_a_repeated_piece_with_another_text_is_found() -> None:
    assert broken_by(started(), piece(1), piece(2), piece(1, "else ")) is Broken.REPEATED_PIECE


def test_a_second_end_is_found_even_if_it_is_the_same() -> None:
    end = done("w1 ")

    assert broken_by(started(), piece(1), end, end) is Broken.SECOND_END


def test_the_same_end_may_come_again_over_another_connection_and_another_end_may_not() -> None:
    assembly = fed(started(), piece(1), done("w1 "))

    assert assembly.take(done("w1 "), over="another") == []
    with pytest.raises(BrokenPromise, match="second end"):
        assembly.take(Stopped(turn_id=TURN, receipt=Receipt.of(["w1 "])), over="a third")


@pytest.mark.parametrize("late", [piece(2), takeover(2, 1), Rewind(turn_id=TURN, to_seq=0)], ids=["piece", "takeover", "rewind"])
def test_anything_new_after_the_end_is_found(late: Event) -> None:
    assert broken_by(started(), piece(1), done("w1 "), late) is Broken.SECOND_END


def test_a_wrong_receipt_is_found() -> None:
    wrong_sha = Done(turn_id=TURN, receipt=Receipt(pieces=1, sha256="0" * 64))

    assert broken_by(started(), piece(1), wrong_sha) is Broken.WRONG_RECEIPT
    assert broken_by(started(), piece(1), piece(2), done("w1 ")) is Broken.WRONG_RECEIPT


@pytest.mark.parametrize(
    "events",
    [
        pytest.param((piece(1), piece(2, attempt=2)), id="an attempt that never took over"),
        pytest.param((piece(1), takeover(2, 1), piece(2, attempt=1)), id="a piece of the attempt before"),
        pytest.param((piece(1), piece(2), takeover(2, 1)), id="a takeover before what was said, and no rewind"),
        pytest.param((piece(1), takeover(2, 1), takeover(2, 0)), id="one attempt going on from two places"),
        pytest.param((piece(1), piece(1, attempt=2)), id="one piece of two attempts"),
        pytest.param((piece(1), done("w1 ", content="else")), id="an end with another text"),
        pytest.param((piece(1), piece(2).model_copy(update={"turn_id": "turn_x"})), id="another turn"),
    ],
)
def test_a_mix_of_two_texts_is_found(events: tuple[Event, ...]) -> None:
    assert broken_by(started(), *events) is Broken.MIX


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    """Draw the log of a turn: several attempts, each with some pieces, and any end."""
    events: list[Event] = [accepted(), started()]
    texts: list[str] = []
    for attempt, words in enumerate(draw(st.lists(st.lists(st.text(max_size=4), max_size=6), min_size=1, max_size=4)), start=1):
        if attempt > 1:
            events.append(takeover(attempt, len(texts)))
        for word in words:
            texts.append(word)
            events.append(Piece(turn_id=TURN, seq=len(texts), attempt=attempt, text=word))
    receipt = Receipt.of(texts)
    failed = Failed(turn_id=TURN, receipt=receipt, code="engine_error", message="No.", retryable=True)
    return [*events, draw(st.sampled_from([done(*texts), failed, Stopped(turn_id=TURN, receipt=receipt)]))]


def beyond(events: list[Event], seq: int) -> list[Event]:
    """Return what a connection that resumes after piece `seq` gets: the takeovers right after it belong to it."""
    for at, event in enumerate(events):
        if isinstance(event, Takeover) and event.after_seq >= seq:
            return events[at:]
        if isinstance(event, Piece) and event.seq > seq:
            return events[at:]
    return events[-1:]


@given(turns(), st.data())
def test_any_schedule_of_cuts_resumes_and_duplicates_assembles_to_the_text(events: list[Event], data: st.DataObject) -> None:
    texts = [event.text for event in events if isinstance(event, Piece)]
    assembly, news = Assembly(), []
    feeds: list[list[Event]] = []

    for _ in range(data.draw(st.integers(0, 5), label="connections")):
        start = data.draw(st.integers(0, assembly.seq), label="resumed after")
        feed = beyond(events, start) if start else list(events)
        feeds.append(feed[: data.draw(st.integers(0, len(feed)), label="cut at")])
        for lagging, rest in enumerate(feeds):  # the connections before may still deliver, too
            for _ in range(data.draw(st.integers(0, len(rest)), label=f"delivered by {lagging}")):
                news += assembly.take(rest.pop(0), over=lagging) or []
    for event in beyond(events, assembly.seq) if assembly.seq else events:
        news += assembly.take(event, over="last") or []

    assert assembly.whole() == "".join(texts)
    assert [event.text for event in news if isinstance(event, Piece)] == texts
    assert [event for event in news if event.type in {"done", "failed", "stopped"}] == [events[-1]]


@given(turns(), st.data())
def test_no_forged_log_passes_for_the_reply(events: list[Event], data: st.DataObject) -> None:
    """Drop or change one piece anywhere: whatever the rest looks like, it is not taken for the whole."""
    places = [at for at, event in enumerate(events) if isinstance(event, Piece)]
    if not places:
        return
    at = data.draw(st.sampled_from(places))
    old = events[at]
    assert isinstance(old, Piece)
    changed = old.model_copy(update={"text": old.text + "!"})
    forged = events[:at] + data.draw(st.sampled_from([[], [changed], [old, changed]])) + events[at + 1 :]

    with pytest.raises(BrokenPromise):
        assembled(forged)
