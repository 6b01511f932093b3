"""What an inference replica does with a turn: claim it, let the engine speak, write down every piece, end it.

The engine goes on while Redis is away, into a bounded buffer; piece boundaries never change once a piece has its number
(law 9). A run that has lost its turn stops its engine and writes nothing more (law 3).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from serve_app.chat.background import Background
from serve_app.chat.drain import Departure
from serve_app.chat.engine import Engine, EnginePiece, Prefix
from serve_app.chat.errors import (
    ChatError,
    ContinuationRefused,
    DeadlineExceeded,
    EmptyReply,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ModelNotServed,
    ReplicaLeaving,
    StoreUnavailable,
)
from serve_app.chat.events import Done, End, Failed, Receipt, Usage
from serve_app.chat.messages import now
from serve_app.chat.meter import ATTEMPTS, RUNNING, TAKEOVERS, TURNS, UNMEASURED, Meter
from serve_app.chat.moving import move
from serve_app.chat.prompt import build_prompt
from serve_app.chat.turns import Claim, Failure, Plan, TurnStore, Verdict
from serve_app.chat.writer import Superseded, Writer, window_s

log = logging.getLogger(__name__)
STOP_WITHIN_S = 2.0
"""How long an engine may take to stop when told to."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Limits of one run. Seconds, unless the name says otherwise."""

    first_piece_timeout_s: float = 60.0
    piece_timeout_s: float = 30.0
    beat_s: float = 0.9
    hurried_beat_s: float = 0.2
    history_messages: int = 60
    finish_retry_s: float = 0.25


class _Run:
    """One attempt, as the beat sees it."""

    def __init__(self, turn_id: str, token: str, *, gives_up_at: float, writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        self.turn_id = turn_id
        self.token = token
        self.gives_up_at = gives_up_at
        self.writer = writer
        self.moved_at = loop.time()
        self.spoke = False
        self.interruption: ChatError | None = None
        self.lost = False
        self.listening: asyncio.Task[Usage] | None = None
        self.over = asyncio.Event()

    def listened(self, task: asyncio.Task[Usage]) -> None:
        """Note that the engine is through; looks at its failure, for nobody else may, where it was left alone."""
        if not task.cancelled():
            task.exception()
        self.over.set()

    def interrupt(self, reason: ChatError | None) -> None:
        """Stop listening to the engine: because of `reason`, or because the turn belongs to somebody else."""
        if reason is None:
            self.lost = True
        if self.listening is None or self.listening.done() or self.interruption is not None:
            return
        self.interruption = reason
        self.listening.cancel()
        # An engine that does not let itself be stopped must not keep its turn open: it is left alone then.
        asyncio.get_running_loop().call_later(STOP_WITHIN_S, self.over.set)


class Generator:
    """Runs turns on one engine. Use as `async with`."""

    def __init__(
        self,
        turns: TurnStore,
        engine: Engine,
        *,
        node: str,
        replica: str = "",
        config: GeneratorConfig | None = None,
        meter: Meter = UNMEASURED,
        departure: Departure | None = None,
    ) -> None:
        """Write to `turns` what `engine` says; `node` and `replica` are where this happens.

        While the node is leaving (`departure`), nothing new is run; what is still live when its time is up is moved.
        """
        self._turns = turns
        self._engine = engine
        self._node = node
        self._replica = replica
        self._config = config or GeneratorConfig()
        self._meter = meter
        self._departure = departure or Departure()
        self._runs: dict[str, _Run] = {}
        self._beat = Background(self._beats, name="generator-beat", died="Leases are no longer renewed.")

    async def __aenter__(self) -> "Generator":
        """Start renewing leases and watching the engine."""
        self._beat.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; runs that are not through lose their leases."""
        await self._beat.stop()

    def check(self) -> None:
        """Raise if leases are no longer renewed."""
        self._beat.check()

    @property
    def running(self) -> int:
        """How many turns run here now."""
        return len(self._runs)

    async def run(self, turn_id: str, *, dispatch: str, run: str, plan: Plan) -> Verdict:
        """Claim a turn and run it to its end; return `OK`, or why it was not this run's to end.

        Raises:
            ReplicaLeaving: before the claim; another replica can run it.
        """
        if self._departure.leaving:
            raise ReplicaLeaving()
        claim = await self._turns.claim(
            turn_id,
            dispatch=dispatch,
            run=run,
            node=self._node,
            replica=self._replica,
            plan=plan,
            window=self._config.history_messages,
            engine=self._engine.info.kind,
            model=self._model(plan),
        )
        if isinstance(claim, Verdict):
            return claim
        self._meter.count(ATTEMPTS, claim.plan.pool, self._model(claim.plan))
        if claim.attempt > 1:
            self._meter.count(TAKEOVERS, claim.plan.pool)
        loop = asyncio.get_running_loop()
        writer = Writer(
            self._turns,
            turn_id,
            token=run,
            attempt=claim.attempt,
            pieces=claim.pieces,
            window=lambda: window_s(len(self._runs)),
        )
        current = _Run(turn_id, run, gives_up_at=loop.time() + claim.remaining_ms / 1000, writer=writer)
        self._runs[run] = current
        try:
            async with writer:
                end = await self._generate(current, claim, run)
            error = end[0]
            if error is not None and (back := _goes_back(error)) is not None:
                failure = None
                if back is not Verdict.MOVED:
                    failure = Failure(error.code, error.message, error.retryable)
                    log.warning("Turn %s, attempt %d, is given back: %s", turn_id, claim.attempt, error.message)
                return await move(
                    self._turns,
                    turn_id,
                    writer,
                    token=run,
                    dispatch=dispatch,
                    gives_up_at=current.gives_up_at,
                    reason=back,
                    failure=failure,
                )
            await self._finish(current, claim, end)
        except Superseded as superseded:
            log.warning("Turn %s, attempt %d: %s.", turn_id, claim.attempt, superseded.verdict.value)
            return superseded.verdict
        finally:
            del self._runs[run]
        return Verdict.OK

    async def _generate(self, current: _Run, claim: Claim, run: str) -> tuple[ChatError | None, Usage]:
        """Let the engine speak into the writer; return why it ended badly, if so, and the usage."""
        writer = current.writer
        # Another model's token ids mean nothing to this one: then it goes on from the text.
        token_ids = tuple(i for piece in claim.pieces for i in piece.token_ids) if claim.same_model else ()
        prefix = Prefix(writer.text(), token_ids)
        personality = claim.plan.personality.open()
        prompt = build_prompt(personality, claim.history, claim.plan.model)
        stream = self._engine.generate(prompt, claim.options.over(personality.options), prefix, run=run)
        # A task of its own, so that interrupting the engine can never cancel the writing down.
        current.listening = listening = asyncio.create_task(self._listen(current, stream))
        listening.add_done_callback(current.listened)
        try:
            await current.over.wait()
        finally:
            writer.stop_appending()
            listening.cancel()
            with contextlib.suppress(EngineError, RuntimeError, TimeoutError):  # RuntimeError: it is still running, see above
                async with asyncio.timeout(STOP_WITHIN_S):
                    await stream.aclose()
        if current.lost:
            raise Superseded()
        usage, error = Usage(), self._failure(current, listening)
        if error is None:
            usage = listening.result()
            if not writer.said_anything:
                error = EmptyReply()
        return error, usage

    @staticmethod
    def _failure(current: _Run, listening: asyncio.Task[Usage]) -> ChatError | None:
        if current.interruption is not None or listening.cancelled():
            # Also where the engine ended by itself after that: what it said then need not be all it had to say.
            return current.interruption or EngineError()
        error = listening.exception()
        if error is None or isinstance(error, EngineError):
            return error
        if isinstance(error, Superseded):
            raise error
        log.error("Turn %s: the engine failed with something that is not an EngineError.", current.turn_id, exc_info=error)
        return EngineError()

    @staticmethod
    async def _listen(current: _Run, stream: AsyncGenerator[EnginePiece, None]) -> Usage:
        loop, writer, usage = asyncio.get_running_loop(), current.writer, Usage()
        async for piece in stream:
            current.moved_at = loop.time()
            if piece.usage is not None:
                usage = piece.usage
            if piece.text:
                current.spoke = True
                writer.add(piece.text, piece.token_ids)
                if writer.full:
                    await writer.room()
        writer.stop_appending()  # at once, so that the rest goes with `finish` and not in an append of its own
        return usage

    async def _finish(self, current: _Run, claim: Claim, outcome: tuple[ChatError | None, Usage]) -> None:
        """End the turn, however long Redis takes to come back; the lease is renewed meanwhile."""
        error, usage = outcome
        writer = current.writer
        end = self._end(current.turn_id, claim, writer, error, usage)
        sent = writer.acknowledged
        while True:
            tail = writer.pieces[sent:]
            try:
                verdict, seq = await self._turns.finish(
                    current.turn_id, token=current.token, end=end, tail=tail, from_seq=sent + 1
                )
            except StoreUnavailable:
                if current.lost or asyncio.get_running_loop().time() > current.gives_up_at + 60:
                    raise Superseded(Verdict.GONE) from None
                await asyncio.sleep(self._config.finish_retry_s)
                continue
            if verdict is Verdict.OK:
                code = error.code if error else ""
                plan = claim.plan
                self._meter.count(TURNS, plan.personality.name, plan.pool, self._model(plan), end.type, code)
                return
            if verdict is not Verdict.EXPECT:
                raise Superseded(verdict)
            sent = seq - 1

    def _end(self, turn_id: str, claim: Claim, writer: Writer, error: ChatError | None, usage: Usage) -> End:
        facts = {
            "turn_id": turn_id,
            "conversation_id": claim.conversation_id,
            "content": writer.text(),
            "receipt": Receipt.of(piece.text for piece in writer.pieces),
            "node": claim.node,
            "generated_on": self._node,
            "personality": claim.plan.personality.name,
            "pool": claim.plan.pool,
            "model": self._model(claim.plan),
            "attempt": claim.attempt,
            "timestamp": now(),
        }
        if error is None:
            return Done.model_validate({**facts, "usage": usage})
        return Failed.model_validate({**facts, "code": error.code, "message": error.message, "retryable": error.retryable})

    def _silence(self, limit: float) -> EngineError:
        kind = EngineUnavailable if self._engine.info.hangs_alone else EngineTimeout
        return kind(f"The engine produced nothing for {limit:g} s.")

    def _model(self, plan: Plan) -> str:
        return plan.model or self._engine.info.model

    async def _beats(self) -> None:
        """About once a second: renew all leases in one call, and interrupt engines that say nothing for too long.

        While Redis is away the beat is hurried: whoever lives must have renewed soon after it is back (`keys.GRACE_MS`).
        """
        loop, config = asyncio.get_running_loop(), self._config
        while True:
            begun, beat_s = loop.time(), config.hurried_beat_s
            runs = list(self._runs.values())
            self._meter.set(RUNNING, len(runs))
            for run in runs:
                if run.writer.full:
                    run.moved_at = begun  # it is Redis that holds it up, not the engine
                limit = config.piece_timeout_s if run.spoke else config.first_piece_timeout_s
                if begun > run.gives_up_at:
                    run.interrupt(DeadlineExceeded())
                elif self._departure.time_left <= 0:
                    run.interrupt(ReplicaLeaving())
                elif begun - run.moved_at > limit and not run.writer.closed:
                    run.interrupt(self._silence(limit))
            with contextlib.suppress(StoreUnavailable):
                lost = await self._turns.renew([(run.turn_id, run.token) for run in runs])
                for run in runs:
                    if run.token in lost and run.token in self._runs:
                        run.interrupt(None)
                beat_s = config.beat_s
            await asyncio.sleep(max(0.05, beat_s - (loop.time() - begun)))


def _goes_back(error: ChatError) -> Verdict | None:
    """Return how a run gives its turn back to its router, which knows who else is able; None where nobody could do better."""
    if isinstance(error, ReplicaLeaving):
        return Verdict.MOVED
    if isinstance(error, EngineUnavailable):
        return Verdict.GAVE_UP
    if isinstance(error, EngineTimeout):
        return Verdict.SILENT
    if isinstance(error, ContinuationRefused | ModelNotServed) or type(error) is EngineError:
        return Verdict.UNFIT
    return None  # refused, empty, too late: it would be so everywhere
