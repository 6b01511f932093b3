"""How an ingress hands turns to a router: whatever goes wrong with the call, nobody waits for ever."""

import asyncio
import warnings
from typing import Any

import pytest

from serve_app.chat.errors import EngineUnavailable

with warnings.catch_warnings():  # Ray Serve itself uses what Pydantic has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from deployments.handles import RouterHandle


class Method:
    """The router's `take_turns`, as a handle offers it: fails with `error`, if there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.taken: list[str] = []

    async def remote(self, turns: list[tuple[str, str, str, str]]) -> None:
        if self.error is not None:
            raise self.error
        self.taken += [turn_id for turn_id, *_ in turns]


class Handle:
    """A handle that Serve has made already."""

    is_initialized = True

    def __init__(self) -> None:
        self.take_turns = Method()


async def take(router: RouterHandle, count: int) -> list[Any]:
    """Hand turns over, at once; return how each went."""
    turns = [router.take_turn(f"turn_{n}", token="t", personality="robbie") for n in range(count)]
    async with asyncio.timeout(2):
        return await asyncio.gather(*turns, return_exceptions=True)


@pytest.mark.parametrize("error", [ValueError("anything"), AttributeError("else"), OSError("at all")], ids=repr)
async def test_a_call_that_fails_in_whatever_way_is_told_to_everyone_who_waits_for_it(error: Exception) -> None:
    handle = Handle()
    router = RouterHandle(handle)  # type: ignore[arg-type]
    handle.take_turns.error = error
    assert [type(outcome) for outcome in await take(router, 5)] == [EngineUnavailable] * 5
    handle.take_turns.error = None
    assert await take(router, 5) == [None] * 5
    assert handle.take_turns.taken == [f"turn_{n}" for n in range(5)], "calls go on after one that failed"
