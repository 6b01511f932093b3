"""The one module that talks through Serve handles: nothing else in Aurora meets a Ray exception.

Every call has a timeout, because routing to a deployment without replicas waits for ever. Handles are made once, in
constructors: `get_app_handle` hangs while the head is away.
"""

import asyncio
import contextvars
from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc  # type: ignore[import-untyped]
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.chat.errors import ChatError, EngineUnavailable, Overloaded
from serve_app.chat.service import Dispatcher
from serve_app.chat.supervise import Pools, Ran
from serve_app.chat.turns import Plan

TakenTurn: TypeAlias = tuple[str, str, str, str]
"""turn_id, dispatch token, personality, the replica that answered its conversation before."""
CALLS_AT_ONCE = 2
"""Calls to routers that one ingress has on their way; more turns than that share."""
TAKE_TIMEOUT_S = 3.0
"""A router that does not take a turn within this is not there; a sweep finds the turn."""


class RouterHandle(Dispatcher):
    """Hands turns to a router, the local one preferred.

    Turns that come while calls are on their way share the next call: a call costs more than what it carries.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Use the handle that Serve bound into the ingress."""
        # The method's handle is made once: every attribute access on a handle copies all of its options.
        self._take_turns = _prefer_local(handle).take_turns
        self._waiting: list[tuple[TakenTurn, asyncio.Future[None]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def take_turn(self, turn_id: str, *, token: str, personality: str, warm: str = "") -> None:
        """See `Dispatcher.take_turn`."""
        taken = asyncio.get_running_loop().create_future()
        self._waiting.append(((turn_id, token, personality, warm), taken))
        self._call()
        await taken

    def _call(self) -> None:
        if self._waiting and len(self._calls) < CALLS_AT_ONCE:
            # A context of its own: this call is nobody's request (law 4).
            call = asyncio.create_task(self._take(self._waiting), context=contextvars.Context())
            self._waiting = []
            self._calls.add(call)
            call.add_done_callback(self._called)

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._call()

    async def _take(self, batch: list[tuple[TakenTurn, asyncio.Future[None]]]) -> None:
        error: BaseException | None = None
        try:
            async with asyncio.timeout(TAKE_TIMEOUT_S):
                await self._take_turns.remote([turn for turn, _ in batch])
        except Exception as gone:  # noqa: BLE001 - whatever it is, nobody may wait for ever; a sweep finds the turns
            error = EngineUnavailable(f"No router took the turn ({type(gone).__name__}).")
        except asyncio.CancelledError as cancelled:
            error = cancelled
        for _, taken in batch:
            if taken.done():
                continue
            if error is None:
                taken.set_result(None)
            else:
                taken.set_exception(error)


class PoolHandles(Pools):
    """Has turns run by the replicas of pools, local ones preferred."""

    def __init__(self, pools: Iterable[str], *, timeout_s: float) -> None:
        """Make handles for the pool applications named; a run that takes longer than `timeout_s` is given up."""
        names = tuple(pools)
        self._run_turn = {name: _prefer_local(_inference(name)).run_turn for name in names}
        self._elsewhere = {name: _anywhere(_inference(name)).run_turn for name in names}
        self._timeout_s = timeout_s

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        """See `Pools.run_turn`. `elsewhere` may still be here: then it is refused, and asked again."""
        run_turn = (self._elsewhere if elsewhere else self._run_turn).get(plan.pool)
        if run_turn is None:
            raise EngineUnavailable(f"There is no pool {plan.pool!r}.")
        try:
            async with asyncio.timeout(self._timeout_s):
                ran = await run_turn.remote(turn_id, dispatch, run, plan, prefer=prefer)
                # It says who it is only where that is not the one wanted.
                return Ran(ran) if isinstance(ran, str) else Ran(*ran)
        except BackPressureError as full:
            raise Overloaded() from full
        except RayTaskError as failed:
            if isinstance(failed.cause, ChatError):
                raise failed.cause from failed
            raise EngineUnavailable("The run failed inside its replica.") from failed
        except (RayActorError, DeploymentUnavailableError, RayServeException, RayError, grpc.RpcError, TimeoutError) as gone:
            raise EngineUnavailable(f"The replica is gone ({type(gone).__name__}).") from gone


def _inference(pool: str) -> DeploymentHandle[Any]:
    # Made here, as `get_deployment_handle` returns one and the same handle to all who ask, and each is initialized once.
    return DeploymentHandle("Inference", pool)


def _anywhere(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    handle._init(_prefer_local_routing=False)  # type: ignore[no-untyped-call]
    return handle


def _prefer_local(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    if not handle.is_initialized:
        handle._init(_prefer_local_routing=True)  # type: ignore[no-untyped-call]
    return handle
