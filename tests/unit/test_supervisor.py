"""A router that is left takes on nothing any more."""

import asyncio
from typing import Any

from serve_app.chat.personalities import Personalities
from serve_app.chat.supervise import Ran, Supervisor
from serve_app.chat.turns import Due, Swept
from tests.support.stack import personalities
from tests.support.waiting import until

DUE = Due("turn_1", "token", "robbie", attempt=0, barren=0, stopping=False, overdue=False)


class Turns:
    """Has one turn that is due, and says so when it is let."""

    def __init__(self) -> None:
        self.asked, self.answer = 0, asyncio.Event()

    async def renew(self, held: object, *, queued: object = None) -> set[str]:
        return set()

    async def sweep(self, *, token: str, batch: int) -> Swept:
        self.asked += 1
        await self.answer.wait()
        return Swept([DUE], None)


class Pools:
    """Counts the turns that are to be run."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    async def run_turn(self, turn_id: str, **_: Any) -> Ran:
        self.runs.append(turn_id)
        return Ran("ok")


async def test_what_a_sweep_finds_while_the_router_is_left_is_left_to_the_others() -> None:
    turns, pools, people = Turns(), Pools(), personalities()
    assert isinstance(people, Personalities)
    async with Supervisor(turns, pools, people) as supervisor:  # type: ignore[arg-type]
        await until(lambda: turns.asked)
        turns.answer.set()  # the answer is there in the moment in which the router is left
    assert not supervisor.waiting
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pools.runs == []
