"""Errors: values that cross processes unchanged, each in the one table, each saying what to do."""

import asyncio
import json
import pickle
import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from serve_app.api import errors as api
from serve_app.chat import errors as chat
from serve_app.chat.errors import ChatError


def _subclasses(cls: type[ChatError]) -> Iterator[type[ChatError]]:
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("serve_app."):
            yield sub
            yield from _subclasses(sub)


EVERY = sorted(set(_subclasses(ChatError)), key=lambda cls: cls.code)
every_error = pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)


@every_error
def test_an_error_is_the_same_after_pickling(cls: type[ChatError]) -> None:
    for error in (cls(), cls("Say it plainly."), cls("Say it plainly.", turn_id="turn_1")):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            back = pickle.loads(pickle.dumps(error, protocol))
            assert type(back) is cls
            assert (back.code, back.retryable, back.message, back.turn_id) == (
                cls.code,
                cls.retryable,
                error.message,
                error.turn_id,
            )
            assert (str(back), back.args) == (str(error), error.args)


@every_error
def test_an_error_says_in_its_docstring_what_happened_and_says_so_by_itself(cls: type[ChatError]) -> None:
    assert cls.__doc__ is not None
    assert cls.__dict__.get("__doc__"), "the docstring is inherited"
    first = cls.__doc__.split("\n", 1)[0]
    assert re.fullmatch(r"[A-Z].{15,}\.", first)
    assert cls().message == first


@every_error
def test_an_error_has_a_code_of_its_own_in_the_table(cls: type[ChatError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.code)
    assert cls.code in api.TABLE
    assert [other for other in EVERY if other.code == cls.code] == [cls]


@every_error
def test_its_status_and_its_close_code_say_whether_to_try_again(cls: type[ChatError]) -> None:
    status, close = api.status_of(cls.code), api.close_code_of(cls.code)
    assert 400 <= status < 600
    assert 4000 <= close <= 4999
    assert (close < 4500) is cls.retryable
    if not cls.retryable:
        assert status < 500


def test_the_table_holds_nothing_that_cannot_happen() -> None:
    assert set(api.TABLE) == {cls.code for cls in EVERY}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"(\w+) +([a-z_]+) +(yes|no)$", chat.__doc__ or "", re.MULTILINE)
    told = {name: (code, retryable == "yes") for name, code, retryable in drawn}
    assert told == {cls.__name__: (cls.code, cls.retryable) for cls in EVERY if cls.__module__ == chat.__name__}


def test_the_shape_names_the_turn_only_where_one_is_concerned() -> None:
    assert api.shape_of(chat.Overloaded("Full.")) == {"error": {"code": "overloaded", "message": "Full.", "retryable": True}}
    assert api.shape_of(chat.TurnInProgress(turn_id="turn_1"))["error"]["turn_id"] == "turn_1"


async def _ask(error: Exception) -> httpx.Response:
    app = FastAPI()
    api.install(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://aurora") as client:
        return await client.get("/")


@every_error
async def test_an_error_in_a_route_is_answered_by_the_table(cls: type[ChatError]) -> None:
    answer = await _ask(cls())
    assert answer.status_code == api.status_of(cls.code)
    assert answer.json() == api.shape_of(cls())
    assert ("retry-after" in answer.headers) is cls.retryable


@pytest.mark.parametrize("error", [ValueError("secret"), RuntimeError("secret"), KeyError("secret"), asyncio.QueueFull("secret")])
async def test_a_bug_in_a_route_is_answered_without_a_word_of_it(error: Exception) -> None:
    answer = await _ask(error)
    assert answer.status_code == 500
    assert answer.json() == api.shape_of(api.Internal())
    assert "secret" not in answer.text


def test_a_validation_error_names_fields_but_no_input_and_does_not_grow_with_it() -> None:
    problem = {"type": "extra_forbidden", "loc": ("body", "options", "x" * 10_000), "msg": "Extra inputs are not permitted"}
    said = api.say([problem] * 10_000)
    assert said.startswith("options.xxx")
    assert len(said) < 1_000
    json.dumps(said)


def test_a_code_of_a_later_version_is_answered_as_a_failure_of_an_engine() -> None:
    """In a rolling upgrade an ingress may meet the end of a turn that a newer replica ran."""
    assert (api.status_of("of_a_later_version"), api.close_code_of("of_a_later_version")) == (502, 4002)
