"""What a router does with turns: dispatch them to a pool, watch over them, and take on those whose holder is gone.

A router holds a turn from dispatch to claim and renews its lease meanwhile; then the run holds it. A run that is seen
to die is replaced at once, the first time; later, and whenever nobody saw it, the lease decides (law 7).
"""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from serve_app.chat.background import Background
from serve_app.chat.drain import Departure
from serve_app.chat.ending import fail_given_back, fail_turn
from serve_app.chat.errors import (
    AttemptsExhausted,
    ChatError,
    DeadlineExceeded,
    EngineUnavailable,
    Overloaded,
    PersonalityNotFound,
    ReplicaLeaving,
    StoreUnavailable,
)
from serve_app.chat.events import Event, Queued
from serve_app.chat.ids import new_token
from serve_app.chat.meter import UNMEASURED, WAITING, Meter
from serve_app.chat.personalities import Personalities, Personality, PoolChoice
from serve_app.chat.placing import Roster
from serve_app.chat.turns import BARREN_ATTEMPTS, Due, Plan, TurnStore, Verdict

_GIVEN_BACK = (Verdict.MOVED, Verdict.GAVE_UP, Verdict.UNFIT, Verdict.SILENT)

log = logging.getLogger(__name__)


class Ran(NamedTuple):
    """What became of a call: a `Verdict`, and the replica that ran the turn; empty where that is not known."""

    verdict: str
    replica: str = ""


class Pools(Protocol):
    """How a router reaches the replicas of a pool."""

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        """Have one replica of `plan.pool` claim and run the turn; return how that ended when it is through.

        `prefer` is the replica wanted; another one where that has no room, or is gone. Without one, the replicas of this node are
        preferred, but not `elsewhere`: when they are known to be leaving.

        Raises:
            ReplicaLeaving: the replica's node is leaving; nothing was claimed.
            EngineUnavailable: no replica could be reached, or the one that had it died.
            Overloaded: every replica is full.
        """
        ...


@dataclass(frozen=True)
class SupervisorConfig:
    """The rhythm of a router. Seconds."""

    beat_s: float = 1.0
    hurried_beat_s: float = 0.2
    sweep_batch: int = 64
    sweep_pause_s: float = 0.01
    retry_s: float = 0.25
    """Between two tries of a turn that nobody can run; up to four times as long, the longer it waits."""
    elsewhere_s: float = 0.05
    unclaimed_beats: int = 2
    """Beats after which a turn that no run has claimed goes to another replica; twice as many for every further try."""
    queued_beats: int = 10
    """The same where it is known to wait for a replica that is full: that one is silent for a reason."""


@dataclass
class _Waiting:
    """A turn on its way to a replica, until its run has claimed it."""

    turn_id: str
    beats_left: int
    call: asyncio.Timeout


class Supervisor:
    """Supervises this router's turns. Use as `async with`; leaving it leaves the turns to the other routers."""

    def __init__(
        self,
        turns: TurnStore,
        pools: Pools,
        personalities: Personalities,
        config: SupervisorConfig | None = None,
        *,
        roster: Roster | None = None,
        meter: Meter = UNMEASURED,
        departure: Departure | None = None,
    ) -> None:
        """Dispatch through `pools`, to the replicas of `roster`; `personalities` may be replaced at any time.

        While the node is leaving (`departure`), the other routers take on what is due, and what nobody here has claimed.
        """
        self._turns = turns
        self._pools = pools
        self.personalities = personalities
        self._config = config or SupervisorConfig()
        self._roster = roster or Roster(None)
        self._meter = meter
        self._departure = departure or Departure()
        self._waiting: dict[str, _Waiting] = {}
        self._supervised: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat = Background(self._beats, name="router-beat", died="The router no longer sweeps.")

    async def __aenter__(self) -> "Supervisor":
        """Start renewing and sweeping."""
        self._beat.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; every turn held here is due one lease later."""
        await self._beat.stop()  # first: a sweep that has its answer begins further tasks
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self) -> None:
        """Raise if the sweeping has died."""
        self._beat.check()

    def take(self, turn_id: str, *, token: str, personality: str, warm: str = "") -> None:
        """Supervise a turn that its ingress dispatched with `token`. Returns at once; a second call changes nothing.

        `warm` is the replica that answered its conversation before.
        """
        self._spawn(Due(turn_id, token, personality, attempt=0, barren=0, stopping=False, overdue=False), warm)

    def _spawn(self, due: Due, warm: str = "") -> None:
        if due.token in self._supervised:
            return
        self._supervised.add(due.token)
        self._task(self._supervise_safely(due, warm))

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        # A context of its own: in a request's context Serve would cancel what the work calls when the caller goes (law 4).
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise_safely(self, due: Due, warm: str) -> None:
        try:
            await self._supervise(due, warm)
        except StoreUnavailable:
            log.warning("Turn %s is left to the sweep: the store is away.", due.turn_id)
        except Exception:
            log.exception("Supervising turn %s failed; a sweep takes it on.", due.turn_id)
        finally:
            self._supervised.discard(due.token)

    async def _supervise(self, due: Due, warm: str) -> None:
        if due.closing:
            await self._turns.announce(due.turn_id, token=due.token)
            return
        error = self._hopeless(due)
        if due.stopping or error is not None:
            await fail_turn(self._turns, due.turn_id, None if due.stopping else error, mine=due.token, meter=self._meter)
            return
        try:
            personality = self.personalities.get(due.personality)
        except PersonalityNotFound as missing:
            if not due.pool:
                await fail_turn(self._turns, due.turn_id, missing, mine=due.token, meter=self._meter)
                return
            # Rolled out of the configuration since its first claim: the pinned one goes on, this one is not looked at.
            personality = self.personalities.get(self.personalities.default)
        await self._dispatch(due, personality, warm)

    async def _dispatch(self, due: Due, personality: Personality, warm: str) -> None:
        """Have replicas run a turn, one after the other, until it has its end, or is somebody else's."""
        pinned = self.personalities.pinned(personality.name)
        token, tried, elsewhere, patience = due.token, 0, self._departure.leaving, self._config.unclaimed_beats
        failed: set[str] = set()
        unfit: set[str] = set()
        busy: set[str] = set()
        given_up = False  # by the engine of its last run
        while True:
            # Where nothing is known of the replicas, a turn that has begun stays with its pool.
            turns, chain = 0 if due.pool else tried, _chain(personality, due.pool)
            place = self._roster.place(chain, warm=warm, failed=failed | busy, unfit=unfit, tried=turns)
            if given_up and not place.replica:
                place = self._roster.place(chain, warm=warm, failed=failed, unfit=unfit, tried=turns)
                if not place.replica:  # nobody is known who could do better
                    await fail_given_back(self._turns, due.turn_id, mine=token, meter=self._meter)
                    return
                place = replace(place, spare_replica=False, spare_pool=False)  # all others have been asked
            run = new_token()
            plan = Plan(place.choice.pool, pinned, place.choice.model)
            self._roster.sent(place.replica)
            try:
                try:
                    async with asyncio.timeout(None) as call:
                        beats = max(patience, self._config.queued_beats) if place.full else patience
                        self._waiting[token] = _Waiting(due.turn_id, beats, call)
                        outcome, ran_by = await self._pools.run_turn(
                            due.turn_id, dispatch=token, run=run, plan=plan, elsewhere=elsewhere, prefer=place.replica
                        )
                except TimeoutError:
                    # A frozen replica answers nothing, and no error comes. Should its run claim the turn after all, it is
                    # not dead: it is not to be taken back from, and the lease watches over it.
                    run, elsewhere, patience = "", True, patience * 2
                    raise EngineUnavailable("The replica is silent.") from None
                finally:
                    self._waiting.pop(token, None)
                    self._roster.returned(place.replica)
            except (EngineUnavailable, Overloaded) as reason:
                again = await self._turns.redispatch(due.turn_id, dispatch=token, run=run, token=new_token())
                if again is Verdict.CLOSING:
                    await self._turns.announce(due.turn_id)
                if isinstance(again, Verdict):
                    log.info("Turn %s: %s; %s.", due.turn_id, reason.code, again.value)
                    return
                no_room = isinstance(reason, Overloaded) or place.full
                (busy if no_room else failed).add(place.replica)
                if not no_room:
                    self._roster.shun(place.replica)
                if not place.replica:
                    busy.clear()  # all have been asked: they may have room by now
                if isinstance(reason, ReplicaLeaving):
                    elsewhere = True
                    await asyncio.sleep(self._config.elsewhere_s)
                elif again.attempt == due.attempt:  # it was never claimed: queue, cold start, no replica
                    tried += 1
                    pause_s = self._config.retry_s * min(4, 1 + tried // 8)  # a thousand may wait for one that is away
                    await asyncio.sleep(0 if place.spare_replica or place.spare_pool else pause_s)
                else:
                    given_up = False
                    log.warning("Turn %s: attempt %d died; the next one starts.", due.turn_id, again.attempt)
                due, token = again, again.token
                error = self._hopeless(due)
                if due.stopping or error is not None:
                    await fail_turn(self._turns, due.turn_id, None if due.stopping else error, mine=token, meter=self._meter)
                    return
            else:
                if outcome in _GIVEN_BACK:  # to this router: it goes on at once, where that is possible
                    log.info("Turn %s was given back (%s).", due.turn_id, outcome)
                    ran_by = ran_by or place.replica  # not always the one wanted: that one may have had no room
                    failed.add(ran_by)
                    if ran_by != place.replica:
                        busy.add(place.replica)  # else Serve would choose the same one again, in its place
                    given_up = outcome != Verdict.MOVED
                    if outcome in (Verdict.UNFIT, Verdict.SILENT):
                        unfit.add(plan.pool)
                    if outcome != Verdict.UNFIT:
                        self._roster.shun(ran_by)
                    elsewhere = True
                    due = replace(due, attempt=due.attempt + 1, pool=plan.pool)
                    continue
                if outcome == Verdict.EXHAUSTED:
                    await fail_turn(self._turns, due.turn_id, AttemptsExhausted(), mine=token, meter=self._meter)
                return

    @staticmethod
    def _hopeless(due: Due) -> ChatError | None:
        if due.overdue:
            return DeadlineExceeded()
        return AttemptsExhausted() if due.barren >= BARREN_ATTEMPTS else None

    async def _beats(self) -> None:
        """Once a second: renew what waits here, take on what is due. Redis being away costs a beat, not the loop.

        While it is away the beat is hurried: whoever lives must have renewed soon after it is back (`keys.GRACE_MS`).
        """
        loop = asyncio.get_running_loop()
        while True:
            begun, beat_s = loop.time(), self._config.hurried_beat_s
            with contextlib.suppress(StoreUnavailable):
                if self._departure.leaving:
                    await self._hand_over()
                else:
                    await self._renew()
                    await self._sweep(until=begun + self._config.beat_s)
                beat_s = self._config.beat_s
            await asyncio.sleep(max(0.05, beat_s - (loop.time() - begun)))

    async def _sweep(self, until: float) -> None:
        """Take on what is due, and again in the moment when the next lease lapses, where that comes before the next beat."""
        loop = asyncio.get_running_loop()
        while True:
            swept = await self._turns.sweep(token=new_token(), batch=self._config.sweep_batch)
            for due in swept.due:
                log.warning("Turn %s was due (attempt %d); this router takes it on.", due.turn_id, due.attempt)
                self._spawn(due)
            if swept.lapses_s is None or loop.time() + swept.lapses_s >= until:
                return
            await asyncio.sleep(max(swept.lapses_s, self._config.sweep_pause_s))

    async def _hand_over(self) -> None:
        """Let the other routers have what nobody has claimed; a claim that comes before them is as good."""
        handed = [(waiting.turn_id, token) for token, waiting in self._waiting.items()]
        await self._turns.hand_over(handed)
        for _, token in handed:
            self._waiting.pop(token, None)
        self._meter.set(WAITING, len(self._waiting))

    @property
    def waiting(self) -> int:
        """How many turns this router has that nobody has claimed."""
        return len(self._waiting)

    async def _renew(self) -> None:
        waiting = dict(self._waiting)
        self._meter.set(WAITING, len(waiting))
        queued: dict[str, Event] = {
            it.turn_id: Queued(turn_id=it.turn_id, place=place, estimate_seconds=place * self._config.beat_s)
            for place, it in enumerate(waiting.values(), start=1)
        }
        claimed = await self._turns.renew([(it.turn_id, token) for token, it in waiting.items()], queued=queued)
        for token, it in waiting.items():
            if token in claimed:
                self._waiting.pop(token, None)
                continue
            it.beats_left -= 1
            if it.beats_left == 0 and token in self._waiting:
                it.call.reschedule(0)


def _chain(personality: Personality, last: str) -> Sequence[PoolChoice]:
    """Return the pools that may answer, that of the `last` attempt first: its model goes on to the letter where it can."""
    if not last:
        return personality.pools
    first = [choice for choice in personality.pools if choice.pool == last] or [PoolChoice(pool=last)]
    return [*first, *(choice for choice in personality.pools if choice.pool != last)]
