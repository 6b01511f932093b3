"""docs/protocol.md says what the code does: every event, frame and error, with their fields and codes."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from serve_app.api import errors as api_errors
from serve_app.api import wire
from serve_app.api.errors import _HTTP_CODES, TABLE
from serve_app.chat import errors
from serve_app.chat.events import End, Event, Receipt

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
FRAMES = (wire.ChatFrame, wire.ResumeFrame, wire.StopFrame, wire.PingFrame)
OF_AN_END = set.intersection(*(set(kind.model_fields) for kind in get_args(End)))


def type_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])


def row(of: str) -> str:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{of}` |")]
    return line


def named(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def kinds_of_errors() -> list[type[errors.ChatError]]:
    found, left = [], [errors.ChatError]
    while left:
        left += (kind := left.pop()).__subclasses__()
        found.append(kind)
    return [kind for kind in found if kind.__module__ in (errors.__name__, api_errors.__name__) and kind is not errors.ChatError]


@pytest.mark.parametrize("event", get_args(Event), ids=type_of)
def test_every_event_has_a_row_with_its_own_fields(event: type[BaseModel]) -> None:
    fields = set(event.model_fields) - {"type", "turn_id"}
    if event in get_args(End):
        assert "those of an end" in row(type_of(event))
        fields -= OF_AN_END
    assert named(row(type_of(event)).split("|")[2]) == fields


def test_the_fields_of_every_end_are_told() -> None:
    told = named(PAGE.split("An end has ")[1].split("\nIgnore")[0])
    assert told >= OF_AN_END - {"type", "turn_id"} | set(Receipt.model_fields)


@pytest.mark.parametrize("frame", FRAMES, ids=type_of)
def test_every_frame_has_a_row_with_its_fields(frame: type[BaseModel]) -> None:
    assert named(row(type_of(frame)).split("|")[2]) == set(frame.model_fields) - {"type"}


def test_the_examples_are_frames() -> None:
    examples = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert [wire.Frame.validate_python(json.loads(example)).type for example in examples] == ["chat", "resume"]


def test_the_codes_of_http_itself_have_rows() -> None:
    for status, code in _HTTP_CODES.items():
        if code not in TABLE:
            assert f"| {status} |" in row(code)


@pytest.mark.parametrize("kind", kinds_of_errors(), ids=lambda kind: kind.code)
def test_every_error_has_a_row_with_its_codes(kind: type[errors.ChatError]) -> None:
    _, _, status, closes, again, _ = (cell.strip() for cell in row(kind.code).split("|"))
    assert (int(status), int(closes)) == TABLE[kind.code]
    assert again.startswith("yes") is kind.retryable
