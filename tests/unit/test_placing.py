"""Where a turn goes: the chain is the operator's, and what sleeps, fails or is full costs a turn nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.personalities import PoolChoice
from serve_app.chat.placing import Roster
from serve_app.chat.replicas import ReplicaPresence, ReplicaRecord, ReplicaStatus, ReplicaStore
from tests.support.waiting import until

GPU, OLLAMA, SCRIPTED = PoolChoice(pool="gpu"), PoolChoice(pool="ollama", model="small"), PoolChoice(pool="scripted")
CHAIN = (GPU, OLLAMA, SCRIPTED)


class Records(ReplicaStore):
    """Records that a test gives; away whenever it says so."""

    def __init__(self, records: Sequence[ReplicaRecord] = ()) -> None:
        self.records = list(records)
        self.away = False
        self.reads = 0

    async def register(self, record: ReplicaRecord) -> None:
        if self.away:
            raise StoreUnavailable()
        self.records = [*(r for r in self.records if r.replica != record.replica), record]

    async def leave(self, replica: str) -> None:
        self.records = [r for r in self.records if r.replica != replica]

    async def list(self) -> Sequence[ReplicaRecord]:
        self.reads += 1
        if self.away:
            raise StoreUnavailable()
        return list(self.records)


def record(replica: str, pool: str, node: str = "star", **facts: Any) -> ReplicaRecord:
    given: dict[str, Any] = {"status": "ready", "model": f"{pool}-model", "models": (f"{pool}-model", "small"), **facts}
    return ReplicaRecord(replica=replica, pool=pool, node=node, **given)


@asynccontextmanager
async def roster(*records: ReplicaRecord, node: str = "aurora") -> AsyncIterator[Roster]:
    async with Roster(Records(records), node=node) as known:
        yield known


async def test_the_first_pool_of_the_chain_that_is_able_answers_on_this_node_where_it_can() -> None:
    async with roster(record("o1", "ollama", "aurora"), record("g1", "gpu", "star"), record("g2", "gpu", "aurora")) as known:
        place = known.place(CHAIN)
        assert (place.choice, place.replica, place.spare_replica, place.spare_pool) == (GPU, "g2", True, True)


@pytest.mark.parametrize("how", [ReplicaStatus.STARTING, ReplicaStatus.LEAVING, ReplicaStatus.FAILING])
async def test_a_replica_that_cannot_generate_now_is_passed_over(how: ReplicaStatus) -> None:
    async with roster(record("g1", "gpu", status=how), record("o1", "ollama")) as known:
        place = known.place(CHAIN)
        assert (place.choice, place.replica, place.spare_replica, place.spare_pool) == (OLLAMA, "o1", False, False)


async def test_a_pool_whose_machine_sleeps_is_passed_over_and_used_again_once_it_is_awake() -> None:
    records = Records([record("o1", "ollama")])
    async with Roster(records, every_s=0.01) as known:
        assert known.place(CHAIN).choice == OLLAMA
        records.records.append(record("g1", "gpu"))
        await until(lambda: known.place(CHAIN).choice == GPU)
        await records.leave("g1")
        await until(lambda: known.place(CHAIN).choice == OLLAMA)


async def test_a_full_pool_hands_on_and_where_all_are_full_the_first_choice_is_waited_for() -> None:
    full = record("g1", "gpu", slots=2, busy=2)
    async with roster(full, record("o1", "ollama", slots=1)) as known:
        place = known.place(CHAIN)
        assert (place.choice, place.full) == (OLLAMA, False)
        known.sent("o1")  # its record does not say so yet
        place = known.place(CHAIN)
        assert (place.choice, place.replica, place.full) == (GPU, "g1", True)
        known.returned("o1")
        assert known.place(CHAIN).choice == OLLAMA


async def test_within_a_pool_loaded_comes_before_warm_before_near_before_idle() -> None:
    cold = record("cold", "gpu", "aurora", models=())
    near = record("near", "gpu", "aurora", busy=5)
    warm = record("warm", "gpu", "star", busy=7)
    idle = record("idle", "gpu", "iceland")
    async with roster(cold, near, warm, idle) as known:
        assert known.place(CHAIN, warm="warm").replica == "warm"
        assert known.place(CHAIN, warm="cold").replica == "near"
        assert known.place(CHAIN).replica == "near"
        assert known.place(CHAIN, failed={"near"}).replica == "idle"
        assert known.place(CHAIN, failed={"near", "idle", "warm"}).replica == "cold"


async def test_the_model_that_the_chain_names_is_the_one_that_must_be_loaded() -> None:
    async with roster(record("a", "ollama", models=("large",)), record("b", "ollama", "far", models=("small",))) as known:
        assert known.place([OLLAMA]).replica == "b"
        assert known.place([PoolChoice(pool="ollama", model="large")]).replica == "a"


async def test_what_gave_a_turn_up_is_not_asked_again_by_it_and_others_go_there_still() -> None:
    async with roster(record("g1", "gpu"), record("g2", "gpu"), record("o1", "ollama")) as known:
        assert known.place(CHAIN, failed={"g1"}).replica == "g2"
        assert known.place(CHAIN, failed={"g1"}).spare_replica is False
        assert known.place(CHAIN, unfit={"gpu"}).choice == OLLAMA
        assert known.place(CHAIN).choice == GPU


async def test_a_replica_that_a_call_found_dead_is_shunned_by_all() -> None:
    async with roster(record("g1", "gpu"), record("o1", "ollama")) as known:
        known.shun("g1")
        assert known.place(CHAIN).replica == "o1"


async def test_where_nothing_is_known_the_pools_take_turns_and_serve_chooses() -> None:
    async with roster() as known:
        assert [known.place(CHAIN, tried=n).choice for n in range(4)] == [GPU, OLLAMA, SCRIPTED, GPU]
        assert [known.place(CHAIN, tried=n, unfit={"gpu"}).choice for n in range(2)] == [OLLAMA, SCRIPTED]
        assert known.place([GPU], unfit={"gpu"}).choice == GPU
        assert known.place(CHAIN).replica == ""


async def test_while_the_store_is_away_the_replicas_are_no_less_there() -> None:
    records = Records([record("g1", "gpu")])
    async with Roster(records, every_s=0.01) as known:
        records.away, before = True, records.reads
        await until(lambda: records.reads > before + 2)
        assert known.place(CHAIN).replica == "g1"
        known.check()


async def test_a_replica_says_how_it_is_again_and_again_and_is_forgotten_when_it_goes() -> None:
    records, busy = Records(), 0
    async with ReplicaPresence(records, lambda: record("g1", "gpu", busy=busy), every_s=0.01) as presence:
        await until(lambda: records.records)
        records.away = True
        await asyncio.sleep(0.03)
        presence.check()
        records.away, busy = False, 3
        await until(lambda: records.records[0].busy == 3)
    assert records.records == []
