"""What a router does with turns: dispatch them to a pool, watch over them, and take on those whose holder is gone.

A router holds a turn from dispatch to claim and renews its lease meanwhile; then the run holds it. A run that is seen
to die is replaced at once, the first time; later, and whenever nobody saw it, the lease decides (law 7).
"""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.chat.ending import fail_turn
from serve_app.chat.errors import (
    AttemptsExhausted,
    ChatError,
    DeadlineExceeded,
    EngineUnavailable,
    Overloaded,
    PersonalityNotFound,
    StoreUnavailable,
)
from serve_app.chat.events import Event, Queued
from serve_app.chat.ids import new_token
from serve_app.chat.personalities import Personalities
from serve_app.chat.turns import BARREN_ATTEMPTS, Due, Plan, TurnStore, Verdict

log = logging.getLogger(__name__)


class Pools(Protocol):
    """How a router reaches the replicas of a pool."""

    async def run_turn(self, turn_id: str, *, dispatch: str, run: str, plan: Plan) -> str:
        """Have one replica of `plan.pool` claim and run the turn; return its `Verdict` when it is through.

        Raises:
            EngineUnavailable: no replica could be reached, or the one that had it died.
            Overloaded: every replica is full.
        """
        ...


@dataclass(frozen=True)
class SupervisorConfig:
    """The rhythm of a router. Seconds."""

    beat_s: float = 1.0
    sweep_batch: int = 64
    retry_s: float = 0.25


class Supervisor:
    """Supervises this router's turns. Use as `async with`; leaving it leaves the turns to the other routers."""

    def __init__(
        self, turns: TurnStore, pools: Pools, personalities: Personalities, config: SupervisorConfig | None = None
    ) -> None:
        """Dispatch through `pools`; `personalities` may be replaced at any time."""
        self._turns = turns
        self._pools = pools
        self.personalities = personalities
        self._config = config or SupervisorConfig()
        self._waiting: dict[str, str] = {}
        self._supervised: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Supervisor":
        """Start renewing and sweeping."""
        self._beat = asyncio.create_task(self._beats(), name="router-beat", context=contextvars.Context())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; every turn held here is due one lease later."""
        tasks = [*self._tasks, *([self._beat] if self._beat else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise if the sweeping has died."""
        if self._beat is not None and self._beat.done():
            raise RuntimeError("The router no longer sweeps.") from (None if self._beat.cancelled() else self._beat.exception())

    def take(self, turn_id: str, *, token: str, personality: str) -> None:
        """Supervise a turn that its ingress dispatched with `token`. Returns at once; a second call changes nothing."""
        self._spawn(Due(turn_id, token, personality, attempt=0, barren=0, stopping=False, overdue=False))

    def _spawn(self, due: Due) -> None:
        if due.token in self._supervised:
            return
        self._supervised.add(due.token)
        self._task(self._supervise_safely(due))

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        # A context of its own: in a request's context Serve would cancel what the work calls when the caller goes (law 4).
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise_safely(self, due: Due) -> None:
        try:
            await self._supervise(due)
        except StoreUnavailable:
            log.warning("Turn %s is left to the sweep: the store is away.", due.turn_id)
        except Exception:
            log.exception("Supervising turn %s failed; a sweep takes it on.", due.turn_id)
        finally:
            self._supervised.discard(due.token)

    async def _supervise(self, due: Due) -> None:
        error = self._hopeless(due)
        if due.stopping or error is not None:
            await fail_turn(self._turns, due.turn_id, None if due.stopping else error, mine=due.token)
            return
        try:
            personality = self.personalities.get(due.personality)
        except PersonalityNotFound as missing:
            if not due.pool:
                await fail_turn(self._turns, due.turn_id, missing, mine=due.token)
                return
            # Rolled out of the configuration since its first claim: the pinned one goes on, this one is not looked at.
            personality = self.personalities.get(self.personalities.default)
        pinned = self.personalities.pinned(personality.name)
        pools = (due.pool,) if due.pool else personality.pools
        token, tried = due.token, 0
        while True:
            run = new_token()
            self._waiting[token] = due.turn_id
            plan = Plan(pools[tried % len(pools)], pinned)
            try:
                try:
                    outcome = await self._pools.run_turn(due.turn_id, dispatch=token, run=run, plan=plan)
                finally:
                    self._waiting.pop(token, None)
            except (EngineUnavailable, Overloaded) as reason:
                again = await self._turns.redispatch(due.turn_id, dispatch=token, run=run, token=new_token())
                if isinstance(again, Verdict):
                    log.info("Turn %s: %s; %s.", due.turn_id, reason.code, again.value)
                    return
                if again.attempt == due.attempt:  # it was never claimed: queue, cold start, no replica
                    tried += 1
                    await asyncio.sleep(self._config.retry_s)
                else:
                    log.warning("Turn %s: attempt %d died; the next one starts.", due.turn_id, again.attempt)
                due, token = again, again.token
                if due.pool:  # claimed before: the pool it was pinned to goes on, and no other (law 5)
                    pools = (due.pool,)
                error = self._hopeless(due)
                if due.stopping or error is not None:
                    await fail_turn(self._turns, due.turn_id, None if due.stopping else error, mine=token)
                    return
            else:
                if outcome == Verdict.EXHAUSTED:
                    await fail_turn(self._turns, due.turn_id, AttemptsExhausted(), mine=token)
                return

    @staticmethod
    def _hopeless(due: Due) -> ChatError | None:
        if due.overdue:
            return DeadlineExceeded()
        return AttemptsExhausted() if due.barren >= BARREN_ATTEMPTS else None

    async def _beats(self) -> None:
        """Once a second: renew what waits here, take on what is due. Redis being away costs a beat, not the loop."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            with contextlib.suppress(StoreUnavailable):
                await self._renew()
            with contextlib.suppress(StoreUnavailable):
                for due in await self._turns.sweep(token=new_token(), batch=self._config.sweep_batch):
                    log.warning("Turn %s was due (attempt %d); this router takes it on.", due.turn_id, due.attempt)
                    self._spawn(due)
            await asyncio.sleep(max(0.05, self._config.beat_s - (loop.time() - begun)))

    async def _renew(self) -> None:
        waiting = dict(self._waiting)
        queued: dict[str, Event] = {
            turn_id: Queued(turn_id=turn_id, place=place, estimate_seconds=place * self._config.beat_s)
            for place, turn_id in enumerate(waiting.values(), start=1)
        }
        for token in await self._turns.renew([(turn_id, token) for token, turn_id in waiting.items()], queued=queued):
            self._waiting.pop(token, None)
