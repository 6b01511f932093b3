"""The crowd at work, as a program of its own: `python -m tests.drills.load PLAN OUT`, in the network of the clients.

It prints `asked` once every answer of the first round is under way, asks no more after a line `last` on its standard input, and
ends after a line `end`, when every client has its answer; what was seen is then in OUT. It touches nothing but the public API.
"""

import asyncio
import os
import sys
from pathlib import Path

import httpx

from tests.drills.clients.ear import now
from tests.drills.clients.person import Person
from tests.drills.crowd import PLAN, Client, Plan
from tests.drills.probe import probe
from tests.drills.seen import LOAD, Asked, Load

_TICK_S = 0.05
_UNDER_WAY_S = 30.0
_PRIORITY = 1
"""Real-time: the clients stand for machines of their own, so where cores are short they come first, and what they measure is the
system. A nice value would count only among the processes of one terminal."""


class Crowd:
    """All clients of a plan, and what they see."""

    def __init__(self, plan: Plan) -> None:
        """Be the crowd of `plan`."""
        self.seen = Load()
        self.under_way = asyncio.Event()
        """Every client has begun to be answered, or has failed, or some time has passed."""
        self.last = asyncio.Event()
        """Nobody asks again."""
        self.end = asyncio.Event()
        """The probe may stop."""
        self._plan = plan
        self._first: list[Asked] = []

    async def run(self) -> None:
        """Ask until `last`, listen to every end, probe until `end`."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits, trust_env=False, verify=False) as http, asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            probing = group.create_task(probe(http, self._plan.urls, self._plan.name, self.seen.probes))
            async with asyncio.TaskGroup() as talking:
                for client in self._plan.clients:
                    talking.create_task(self._talk(client, http))
            await self.end.wait()
            for task in (watching, probing):
                task.cancel()

    async def _talk(self, client: Client, http: httpx.AsyncClient) -> None:
        async with Person(client, self._plan, http) as person:
            await asyncio.sleep(client.delay_s)
            while True:
                asked = person.next()
                if asked.client_id not in {first.client_id for first in self._first}:
                    self._first.append(asked)
                self.seen.asked.append(asked)
                await person.ask(asked)
                answered = asked.ended_at is not None
                if self.last.is_set() or not (answered or asked.retries):
                    return  # a client that does not try again does not ask again either
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._plan.pause_s):
                await self.last.wait()
        except TimeoutError:
            return

    async def _watch(self) -> None:
        """Notice when the first round is under way, and how late this process looks at what comes."""
        begun = due = now()
        while True:
            due = max(due, now() - 1.0) + _TICK_S
            await asyncio.sleep(max(0.0, due - now()))
            self.seen.lag_s = max(self.seen.lag_s, now() - due)
            everybody = len(self._first) == len(self._plan.clients) and all(map(_is_under_way, self._first))
            if everybody or now() - begun > _UNDER_WAY_S:
                self.under_way.set()


def _is_under_way(asked: Asked) -> bool:
    """Whether its answer is coming; of one by REST nothing shows before the end."""
    if asked.way == "rest" or asked.failures or asked.ended_at is not None:
        return True
    return any(heard.event.type == "piece" for heard in asked.devices[0].heard) if asked.devices else False


async def serve(crowd: Crowd) -> None:
    """Let the crowd talk, told when by the lines on standard input."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def obey() -> None:
        async for line in lines:
            {b"last": crowd.last, b"end": crowd.end}[line.strip()].set()

    async def say() -> None:
        await crowd.under_way.wait()
        print("asked", flush=True)

    helpers = [asyncio.create_task(obey()), asyncio.create_task(say())]
    try:
        await crowd.run()
    finally:
        for helper in helpers:
            helper.cancel()


def main(plan: Path, out: Path) -> None:
    """Let the crowd of `plan` talk; write what it saw to `out`."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    crowd = Crowd(PLAN.validate_json(plan.read_bytes()))
    asyncio.run(serve(crowd))
    out.write_bytes(LOAD.dump_json(crowd.seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
