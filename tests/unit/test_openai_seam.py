"""The seam repeats nothing however the text is cut, and a stream is read to the letter however its bytes are cut."""

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serve_app.chat.errors import ContinuationRefused
from serve_app.engines import EngineConfig, OpenAICompatibleConfig, OpenAICompatibleEngine, make_engine
from serve_app.engines.openai_api import read_data
from serve_app.engines.openai_seam import EchoSeam

SAID = "It was a dark and stormy night, and the rain fell in torrents."
MORE = " Except at occasional intervals."
READ: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
RIGHT = {"kind": "openai_compatible", "base_url": "http://10.0.0.9:8080/v1", "model": "m", "continuation": "none"}


def through(said: str, *texts: str) -> str:
    """Return what comes through a seam."""
    seam = EchoSeam(said)
    return "".join(map(seam.feed, texts)) + seam.end()


def split(text: str, at: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(one % (len(text) + 1) for one in at)})
    return [text[a:b] for a, b in pairwise(edges)]


cuts = st.lists(st.integers(0, 200), max_size=12)


@given(st.integers(0, len(SAID)), cuts)
def test_a_continuation_passes_and_whitespace_is_said_once(cut: int, at: list[int]) -> None:
    said = SAID[:cut]
    rest = (SAID + MORE)[len(said.rstrip()) :]
    assert said + through(said, *split(rest, at)) == SAID + MORE


@given(st.integers(0, len(SAID)), cuts)
def test_an_echo_is_taken_off_wherever_it_is_cut(cut: int, at: list[int]) -> None:
    said = SAID[:cut]
    if len(said.strip()) >= 12:
        assert said + through(said, *split(SAID + MORE, at)) == SAID + MORE


@given(st.integers(32, len(SAID) - 1), cuts)
def test_a_new_answer_that_begins_like_the_first_is_refused_before_anything_of_it_is_said(same: int, at: list[int]) -> None:
    seam, heard = EchoSeam(SAID), []
    with pytest.raises(ContinuationRefused):
        heard.extend(map(seam.feed, split(SAID[:same] + "#" + SAID, at)))
    assert "".join(heard) == ""


@pytest.mark.parametrize("length", [12, 40, len(SAID) - 1])
def test_an_echo_that_breaks_off_is_refused(length: int) -> None:
    with pytest.raises(ContinuationRefused):
        through(SAID, SAID[:length])


@pytest.mark.parametrize(
    ("said", "texts", "passed"),
    [
        ("ha ha ", ["ha", " ha"], "ha ha"),
        ("one\n", ["\n", "\ntwo"], "\ntwo"),
        ("one\n\n", ["\n", "two"], "two"),
        ("one ", ["\n\ntwo"], "\n\ntwo"),
        ("one ", [" "], ""),
        (SAID, ["It was ", "no use."], "It was no use."),
        (SAID, ["\n", "It was", " no use."], "\nIt was no use."),
        (SAID, [" It", " was"], " It was"),
        ("", ["<think>"], "<think>"),
    ],
)
def test_what_is_no_echo_passes(said: str, texts: list[str], passed: str) -> None:
    assert through(said, *texts) == passed


def test_thoughts_in_the_text_are_no_continuation() -> None:
    with pytest.raises(ContinuationRefused):
        through(SAID, "\n<th", "ink>Let me")


async def test_bytes_cut_anywhere_are_the_same_lines() -> None:
    stream = (
        'data: {"c": "Grüße 🌊 漢字\u2028"}\r\n\r\n: alive\nevent: x\nid: 1\ndata:[DONE]\n\nerror: "old"\ndata: {"cut'.encode()
    )
    wanted = ['{"c": "Grüße 🌊 漢字\u2028"}'.encode(), b"", b"[DONE]", b'{"error": "old"}']
    for size in range(1, len(stream) + 1):

        async def chunks(size: int = size) -> AsyncIterator[bytes]:
            for at in range(0, len(stream), size):
                yield stream[at : at + size]

        assert [line async for line in read_data(chunks())] == wanted


async def test_a_line_without_an_end_is_not_kept() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    with pytest.raises(ValueError, match="without an end"):
        await anext(read_data(chunks()))


def test_a_configuration_is_told_by_its_kind() -> None:
    config = READ.validate_python(RIGHT)
    assert isinstance(config, OpenAICompatibleConfig)
    engine = make_engine(config)
    assert isinstance(engine, OpenAICompatibleEngine)
    assert (engine.info.kind, engine.info.model, engine.info.language_model) == ("openai_compatible", "m", True)
    assert engine.status.models == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"continuation": None},
        {"continuation": "maybe"},
        {"model": "two words"},
        {"base_url": "10.0.0.9"},
        {"base_url": "http://user:password@10.0.0.9/v1"},
        {"api_key": "sk-in-the-clear"},
        {"extra_body": {"stream": False}},
        {"extra_body_continuing": {"echo": True}},
        {"slots": -1},
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python({**RIGHT, **wrong})


def test_whether_a_server_goes_on_must_be_said() -> None:
    with pytest.raises(ValidationError, match="continuation"):
        READ.validate_python({name: value for name, value in RIGHT.items() if name != "continuation"})
