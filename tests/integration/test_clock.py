"""Redis's clock may jump, stop or go back, as after a failover: no takeover storm, no immortal lease, no early deadline (law 7).

Time is simulated: the scripts read it from a key, and a second of the cluster's life is one round of its beats.
"""

from collections.abc import AsyncIterator

import pytest

from serve_app.chat.turns import LEASE_MS, Due
from serve_app.state.keys import GRACE_MS
from tests.support.redis_process import RedisProcess
from tests.support.turn_tools import FAKE_CLOCK, NOON, Open, Store, claim, logged, new_turn, open_turn, store

pytestmark = pytest.mark.integration
HOUR = 3_600_000
JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR, 2_500, -2_500, 45_000, -45_000])


class Cluster:
    """Two routers that sweep and some turns, in simulated time."""

    def __init__(self, at: Store) -> None:
        self._at = at
        self.now = NOON
        self.healthy: list[Open] = []
        self.taken: list[Due] = []

    async def turn(self) -> Open:
        return await open_turn(self._at, deadline_ms=900_000)

    async def jump(self, ms: int) -> None:
        self.now += ms
        await self._at.set_clock(self.now)

    async def second(self, *, sweep_first: bool = False) -> None:
        """Let a second pass: every healthy run renews, every router sweeps."""
        await self.jump(1_000)
        for step in (self._sweep, self._renew) if sweep_first else (self._renew, self._sweep):
            await step()

    async def _renew(self) -> None:
        assert await self._at.turns.renew([(turn.turn_id, turn.run) for turn in self.healthy]) == set()

    async def _sweep(self) -> None:
        for router in ("aurora", "star"):
            self.taken += (await self._at.turns.sweep(token=f"{router}-{self.now}", batch=64)).due

    async def budget(self, turn: Open) -> int:
        """How many milliseconds a turn has until its deadline."""
        return int(await self._at.redis.hget("aurora:turn:" + turn.turn_id, "deadline")) - self.now


@pytest.fixture
async def at(redis_server: RedisProcess) -> AsyncIterator[Store]:
    async with store(redis_server.url, clock=FAKE_CLOCK) as ports:
        await ports.set_clock(NOON)
        yield ports


@pytest.fixture
async def cluster(at: Store) -> Cluster:
    """Five healthy turns, a few seconds into their lives."""
    cluster = Cluster(at)
    cluster.healthy = [await cluster.turn() for _ in range(5)]
    for _ in range(4):
        await cluster.second()
    assert cluster.taken == []
    return cluster


@JUMPS
@pytest.mark.parametrize("sweep_first", [True, False], ids=["sweep first", "renew first"])
async def test_a_jump_of_the_clock_takes_no_turn_from_a_holder_that_renews(
    cluster: Cluster, jump: int, sweep_first: bool
) -> None:
    await cluster.jump(jump)
    for _ in range(20):
        await cluster.second(sweep_first=sweep_first)
    assert cluster.taken == []


@JUMPS
async def test_a_dead_holder_s_turn_is_taken_on_soon_after_a_jump(cluster: Cluster, jump: int) -> None:
    dead = await cluster.turn()
    await cluster.second()
    await cluster.jump(jump)
    for _ in range(5):  # the jump may cost the grace, not more
        await cluster.second()
    assert [(due.turn_id, due.overdue) for due in cluster.taken] == [(dead.turn_id, False)]


@JUMPS
async def test_a_turn_that_dies_right_after_a_jump_is_taken_on_too(cluster: Cluster, at: Store, jump: int) -> None:
    dead = await cluster.turn()
    await cluster.jump(jump)
    await at.turns.append(dead.turn_id, token=dead.run, pieces=logged(["last words"]))
    for _ in range(5):
        await cluster.second()
    assert [due.turn_id for due in cluster.taken] == [dead.turn_id]


@JUMPS
async def test_no_deadline_expires_because_of_a_jump_and_none_becomes_immortal(cluster: Cluster, jump: int) -> None:
    before = [await cluster.budget(turn) for turn in cluster.healthy]
    await cluster.jump(jump)
    for _ in range(5):
        await cluster.second()
    spent = [was - await cluster.budget(turn) for was, turn in zip(before, cluster.healthy, strict=True)]
    assert all(0 <= ms <= 8_000 for ms in spent), spent


@JUMPS
async def test_a_turn_that_begins_between_the_jump_and_the_next_sweep_has_its_whole_time(
    cluster: Cluster, at: Store, jump: int
) -> None:
    await cluster.jump(jump)
    late = await cluster.turn()
    cluster.healthy.append(late)
    for _ in range(5):
        await cluster.second()
    assert cluster.taken == []
    assert await cluster.budget(late) >= 890_000
    assert (await claim(at, late.turn_id, late.dispatch, late.run)).remaining_ms >= 890_000


async def test_while_the_clock_stands_still_nobody_loses_a_turn_and_nobody_does_when_it_goes_on(
    cluster: Cluster, at: Store
) -> None:
    for _ in range(10):
        await cluster.jump(-1_000)
        await cluster.second()
    await cluster.jump(30_000)
    for _ in range(5):
        await cluster.second()
    assert cluster.taken == []


async def test_a_lease_from_a_faster_clock_is_clamped(cluster: Cluster, at: Store) -> None:
    dead = await cluster.turn()
    await at.redis.zadd("aurora:turns:open", {dead.turn_id: cluster.now + HOUR})
    await cluster.second()
    assert await at.redis.zscore("aurora:turns:open", dead.turn_id) == cluster.now + LEASE_MS
    for _ in range(4):
        await cluster.second()
    assert [due.turn_id for due in cluster.taken] == [dead.turn_id]


async def test_a_failover_to_a_lagging_clock_that_lost_the_last_sweep_storms_nobody(cluster: Cluster, at: Store) -> None:
    await at.redis.delete("aurora:sweep")
    await cluster.jump(-10_000)
    for _ in range(10):
        await cluster.second(sweep_first=True)
    assert cluster.taken == []


async def test_when_nobody_swept_for_long_everybody_gets_time_to_renew_first(cluster: Cluster) -> None:
    dead = await cluster.turn()
    await cluster.jump(10 * 60_000)
    await cluster.second(sweep_first=True)
    assert cluster.taken == []
    for _ in range(4):
        await cluster.second()
    assert [due.turn_id for due in cluster.taken] == [dead.turn_id]


async def test_after_a_silence_a_dead_holder_s_turn_is_taken_on_before_a_whole_lease_has_passed(cluster: Cluster) -> None:
    """Who lives renews as soon as Redis is back; a failover has cost seconds already."""
    dead = await cluster.turn()
    await cluster.jump(4_000)
    await cluster._sweep()
    await cluster._renew()
    await cluster.jump(GRACE_MS - 100)
    await cluster._sweep()
    assert cluster.taken == []
    await cluster.jump(200)
    await cluster._sweep()
    assert [due.turn_id for due in cluster.taken] == [dead.turn_id]


async def test_a_deadline_counts_the_time_that_really_passes(cluster: Cluster, at: Store) -> None:
    new = new_turn(deadline_ms=10_000)
    await at.turns.begin(new)
    for _ in range(20):
        await cluster.second()
    assert {(due.turn_id, due.overdue) for due in cluster.taken} >= {(new.turn_id, True)}
