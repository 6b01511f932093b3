"""A replica whose engine's server is away lives, says why, and refuses turns at once; then it is like any other."""

import asyncio
import warnings

import pytest

from serve_app.chat.engine import Engine, EngineInfo, EngineStatus
from serve_app.chat.errors import EngineError, EngineUnavailable, Overloaded
from serve_app.chat.generate import Generator
from serve_app.chat.starting import PatientStart
from serve_app.chat.turns import Verdict
from tests.support.turn_tools import plan

with warnings.catch_warnings():  # Ray Serve itself uses what Pydantic has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from deployments.inference import Inference

pytestmark = pytest.mark.integration
AWAY = "Nothing answers at http://10.0.0.9:8080/v1."


class Machine(Engine):
    """An engine on a machine that is off until it is `on`."""

    info = EngineInfo("machine", "machine-1", False)
    status = EngineStatus()

    def __init__(self) -> None:
        self.on = False
        self.asked = 0

    async def start(self) -> None:
        self.asked += 1
        if not self.on:
            raise EngineUnavailable(AWAY)

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class Gpu(Machine):
    """The same inside the replica."""

    info = EngineInfo("gpu", "gpu-1", False, hangs_alone=True)


class Runs(Generator):
    """Runs whatever it is given, in no time."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def check(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    @property
    def running(self) -> int:
        return 0

    async def run(self, turn_id: str, **_: object) -> Verdict:
        self.given.append(turn_id)
        return Verdict.OK


class Replica(Inference.func_or_class):  # type: ignore[misc, name-defined]
    """A replica of a pool without its Serve and its Redis."""

    def __init__(self, machine: Machine) -> None:
        self._engine, self._runs, self._generator = machine, Runs(), None
        self._replica, self._pool, self._failing = "mine", "pool", ""
        self._presence = self._watch = None
        self._running: set[asyncio.Task[Verdict]] = set()
        self._starting = PatientStart(self._start, first_pause_s=0.001, longest_pause_s=0.001)

    async def _start(self) -> None:
        await self._start_engine()
        self._generator = self._runs

    def __del__(self) -> None:
        """Is Python's here; Serve awaits its own."""

    async def shut_down(self) -> None:
        await super().__del__()


async def test_it_stays_says_why_refuses_at_once_and_takes_turns_as_soon_as_the_machine_is_on() -> None:
    machine = Machine()
    replica = Replica(machine)
    try:
        for _ in range(5):
            await replica.check_health()
        async with asyncio.timeout(0.5):
            with pytest.raises(EngineUnavailable, match="Nothing answers"):
                await replica.run_turn("turn_1", "token", "run", plan())
        machine.on = True
        while replica._generator is None:
            await replica.check_health()
            await asyncio.sleep(0)
        assert await replica.run_turn("turn_2", "token", "run", plan()) == "ok"
        assert await replica.run_turn("turn_3", "token", "run", plan(), prefer="another") == ("ok", "mine")
        assert replica._runs.given == ["turn_2", "turn_3"]
    finally:
        await replica.shut_down()
    asked = machine.asked
    await asyncio.sleep(0.02)  # time in which it would be asked again
    assert machine.asked == asked


async def test_a_turn_that_wanted_another_replica_is_not_told_that_this_one_was_gone() -> None:
    replica = Replica(Machine())
    try:
        await replica.check_health()
        with pytest.raises(Overloaded):
            await replica.run_turn("turn_1", "token", "run", plan(), prefer="another")
        with pytest.raises(EngineUnavailable):
            await replica.run_turn("turn_1", "token", "run", plan(), prefer="mine")
    finally:
        await replica.shut_down()


async def test_an_engine_that_computes_in_the_replica_fails_its_start_as_no_machine_will_come_back() -> None:
    machine = Gpu()
    replica = Replica(machine)
    try:
        with pytest.raises(EngineError, match="Nothing answers") as failed:
            await replica.check_health()
        assert not isinstance(failed.value, EngineUnavailable)
        with pytest.raises(EngineError):
            await replica.check_health()
        assert machine.asked == 2
    finally:
        await replica.shut_down()
