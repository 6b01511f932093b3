"""Cut at any boundary, a text read from token ids goes on as if nothing had happened."""

import itertools
import random
from collections.abc import Sequence

import pytest

from serve_app.engines.token_text import TokenText

WORDS = ("", "<s>", "a", "b", "ab", "END", "EN", "D", "xE", "\n", " ", "🌊")
"""What the tokens 256, 257 … stand for; 0 to 255 are single bytes, 256 and 257 are special and have no text."""


def decode(ids: Sequence[int]) -> str:
    return b"".join(bytes([i]) if i < 256 else WORDS[i - 256].encode() if i > 257 else b"" for i in ids).decode(errors="replace")


def tokens(text: str) -> list[int]:
    """One token for each byte."""
    return list(text.encode())


def pieces_of(ids: Sequence[int], *, stop: Sequence[str] = (), stride: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    """Read `ids`, `stride` at a time, as an engine does."""
    text = TokenText(decode, stop=stop)
    return [*go_on(text, ids, stride)]


def go_on(text: TokenText, ids: Sequence[int], stride: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    out = []
    for at in range(0, len(ids), stride):
        text.read(ids[at : at + stride])
        out.append(text.take())
        if text.stopped:
            break
    return [piece for piece in [*out, text.finish()] if piece[0]]


def joined(pieces: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[str, list[int]]:
    return "".join(text for text, _ in pieces), [i for _, ids in pieces for i in ids]


def test_a_character_comes_out_whole_and_with_all_its_tokens() -> None:
    assert pieces_of(tokens("ü🌊")) == [("ü", tuple(tokens("ü"))), ("🌊", tuple(tokens("🌊")))]


def test_bytes_that_never_become_a_character_are_dropped_at_the_end_with_their_ids() -> None:
    assert pieces_of([*tokens("a"), *tokens("🌊")[:3]]) == [("a", (97,))]


def test_bytes_that_are_no_character_do_not_hold_up_the_rest_for_ever() -> None:
    text, ids = joined(pieces_of([0x80] * 100))
    assert text
    assert set(text) == {"\ufffd"}
    assert len(ids) > 80


def test_a_token_without_text_travels_with_the_next_one_that_has_some() -> None:
    assert pieces_of([256, 97, 257, 98]) == [("a", (256, 97)), ("b", (257, 98))]


def test_what_may_become_a_stop_string_waits_until_it_cannot_any_more() -> None:
    text = TokenText(decode, stop=("END",))
    text.read(tokens("aEN"))
    assert text.take() == ("a", (97,))
    text.read(tokens("x"))
    assert text.take() == ("ENx", tuple(tokens("ENx")))


@pytest.mark.parametrize("ids", [tokens("abENDab"), [260, 261, 260], [260, 262, 263, 260], [258, 259, *tokens("END"), 258]])
def test_a_stop_string_ends_the_text_and_is_not_in_it(ids: list[int]) -> None:
    for stride in range(1, 8):
        assert joined(pieces_of(ids, stop=("END", "\n"), stride=stride))[0] == "ab"


def test_the_first_of_two_stop_strings_counts() -> None:
    assert joined(pieces_of([260, 261, *tokens("\n")], stop=("\n", "END"), stride=9))[0] == "ab"


def test_ids_that_say_something_else_than_the_text_are_refused() -> None:
    assert not TokenText(decode).resume("abc", tokens("ab"))
    assert not TokenText(decode).resume("ab", tokens("abc"))
    assert not TokenText(decode).resume("abc", ())
    assert not TokenText(decode).resume("a", [97, 0xF0])
    assert TokenText(decode).resume("", ())


def test_after_a_text_without_ids_a_stop_string_may_still_begin_in_it() -> None:
    text = TokenText(decode, stop=("END",))
    text.resume_after("so far E")
    assert go_on(text, tokens("ND and more")) == []
    assert text.stopped
    other = TokenText(decode, stop=("END",))
    other.resume_after("so far E")
    assert joined(go_on(other, tokens("X")))[0] == "X"


@pytest.mark.parametrize("stop", [(), ("END",), ("END", "ab", "\n"), ("bb", "🌊x")])
def test_cut_between_any_pieces_and_read_again_the_rest_is_the_same(stop: tuple[str, ...]) -> None:
    dice = random.Random(7)
    for _ in range(50):
        ids = [dice.choice([*range(256, 268), *b"abEND", 0xF0, 0x9F, 0x8C, 0x8A, 0x80]) for _ in range(40)]
        pieces = pieces_of(ids, stop=stop, stride=dice.randint(1, 4))
        whole, _ = joined(pieces)
        for cut in range(len(pieces) + 1):
            said, said_ids = joined(pieces[:cut])
            text = TokenText(decode, stop=stop)
            assert text.resume(said, said_ids)
            rest = [] if text.stopped else go_on(text, ids[len(said_ids) :])
            assert said + joined(rest)[0] == whole
            # The ids of the stop string itself are logged only where text came along with them.
            assert TokenText(decode, stop=stop).resume(whole, said_ids + joined(rest)[1])


def test_how_many_tokens_come_at_once_changes_where_it_is_cut_and_nothing_else() -> None:
    dice = random.Random(11)
    for _ in range(40):
        ids = [dice.choice([*range(256, 268), *b"abEND", 0xF0, 0x9F, 0x8C, 0x8A]) for _ in range(40)]
        readings = {joined(pieces_of(ids, stop=("END", "ab"), stride=stride))[0] for stride in (1, 2, 3, 40)}
        assert len(readings) == 1


def test_nothing_is_given_out_twice_whatever_the_order_of_reading_and_taking() -> None:
    text = TokenText(decode)
    assert list(itertools.chain(text.take(), text.finish())) == ["", (), "", ()]
    text.read(tokens("ab"))
    assert text.take() == ("ab", (97, 98))
    assert text.take() == ("", ())
