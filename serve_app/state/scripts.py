"""Running the Lua scripts: loaded once, called by digest, retried while Redis is away.

A lost reply is not a lost write: every script is idempotent, so a retry is always safe (law 9). What a caller shows to
somebody is waited for until enough replicas have it, in the same round trip (law 8).
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.meter import MEASURED_SCRIPTS, REDIS_RECONNECTS, REDIS_SECONDS, UNMEASURED, Meter
from serve_app.state import keys
from serve_app.state.connection import Connection, Redis, RedisError, UnfitRedis, distrust, is_away

WAIT_MS = 1_000
"""How long replicas may take to confirm a write, before the script is sent again; below the timeout of a command."""
LONGEST_PAUSE_S = 0.25
"""Between two tries: what a caller may lose after Redis is back."""

log = logging.getLogger(__name__)
_INCLUDE = "-- include: "


class _NotKept(Exception):
    """The primary has written it, and too few replicas have said that they have it too."""


class Outage:
    """Something that does not work for a while. Said once when it begins, and once when it is over."""

    def __init__(self, begins: str, ends: str) -> None:
        """Say `begins` and `ends` in the log."""
        self._begins = begins
        self._ends = ends
        self.since: float | None = None

    def begin(self, error: Exception) -> None:
        """Note that it does not work, because of `error`."""
        if self.since is None:
            self.since = asyncio.get_running_loop().time()
            log.warning("%s (%s: %s); trying again.", self._begins, type(error).__name__.strip("_"), error)

    def end(self) -> bool:
        """Note that it works; return whether it did not before."""
        if self.since is None:
            return False
        log.warning("%s after %.1f s.", self._ends, asyncio.get_running_loop().time() - self.since)
        self.since = None
        return True


class Scripts:
    """The scripts of `lua/`, ready to run on one Redis."""

    def __init__(
        self,
        redis: Redis,
        *,
        replicas: int = 0,
        patience_s: float = 10.0,
        clock: str | None = None,
        meter: Meter = UNMEASURED,
    ) -> None:
        """Use `redis`; a call that finds it away tries again for `patience_s` seconds unless it says otherwise.

        What is to be kept must be on `replicas` replicas (law 8); with 0, it is kept once Redis has written it.
        `clock` replaces `_clock.lua`: only tests of jumping clocks give it.
        """
        self._redis = redis
        self._replicas = replicas
        self._patience_s = patience_s
        self._clock = clock
        self._meter = meter
        self._sources: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self.away = Outage("Redis is away", "Redis is back")
        self.unconfirmed = Outage("Nothing is acknowledged", "Replicas confirm again")

    async def run(
        self,
        name: str,
        *args: str | int | bytes,
        patience_s: float | None = None,
        kept: Callable[[Any], bool] | None = None,
    ) -> Any:
        """Run the script `name` and return Redis's reply.

        A reply for which `kept` is true is returned only once the replicas have what the script wrote, and everything that
        any other wrote before it: such a script writes something whenever it answers so, also the second time. Else it
        counts as Redis being away.

        Raises:
            StoreUnavailable: Redis was away for longer than the patience; the script may or may not have run.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + (self._patience_s if patience_s is None else patience_s)
        pause = 0.02
        while True:
            begun = loop.time()
            try:
                reply = await self._once(name, args, kept)
            except UnfitRedis as unfit:
                self.away.begin(unfit)
                raise StoreUnavailable(str(unfit)) from unfit
            except Exception as error:
                if isinstance(error, _NotKept):
                    self.unconfirmed.begin(error)
                elif is_away(error):
                    self.away.begin(error)
                else:
                    raise
                distrust(self._redis, begun, error)
                if loop.time() + pause > give_up:
                    raise StoreUnavailable() from error
            else:
                if name in MEASURED_SCRIPTS:
                    self._meter.observe(REDIS_SECONDS, loop.time() - begun, name)
                if self.away.end():
                    self._meter.count(REDIS_RECONNECTS, "commands")
                return reply
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _once(self, name: str, args: tuple[str | int | bytes, ...], kept: Callable[[Any], bool] | None) -> Any:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            if kept is None or not self._replicas:
                return await self._evaluate(name, args)
            return await self._evaluate_and_wait(name, args, kept)
        finally:
            # The client sends with `wait_for`, which may swallow a cancellation before Python 3.12 (python/cpython#81839):
            # a task that asks Redis again and again would then never end.
            if task and task.cancelling() > before:
                raise asyncio.CancelledError

    async def _evaluate(self, name: str, args: tuple[str | int | bytes, ...]) -> Any:
        digest = self._digests.get(name) or self._load(name)
        try:
            return await self._redis.evalsha(digest, 0, *args)
        except NoScriptError:  # a Redis that restarted or failed over has forgotten its scripts
            return await self._redis.eval(self._sources[name], 0, *args)

    async def _evaluate_and_wait(self, name: str, args: tuple[str | int | bytes, ...], kept: Callable[[Any], bool]) -> Any:
        digest = self._digests.get(name) or self._load(name)
        reply, confirmed = await self._then_wait("EVALSHA", digest, 0, *args)
        if isinstance(reply, NoScriptError):
            reply, confirmed = await self._then_wait("EVAL", self._sources[name], 0, *args)
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(confirmed, RedisError):
            raise confirmed
        if confirmed >= self._replicas:
            self.unconfirmed.end()
        elif kept(reply):
            raise _NotKept(f"{confirmed} of {self._replicas} replicas have confirmed a write within {WAIT_MS / 1000:g} s")
        return reply

    async def _then_wait(self, *command: str | int | bytes) -> tuple[Any, Any]:
        """Send `command` and WAIT together; return both answers, errors among them as they are.

        One connection, because WAIT is about what its own connection has written last; one round trip for both. Without the
        client's pipelines, which cost as much as the two commands.
        """
        pool = self._redis.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands([command, ("WAIT", self._replicas, WAIT_MS)]))
            return await _answer(connection), await _answer(connection)
        finally:
            await pool.release(connection)

    def _load(self, name: str) -> str:
        folder = files("serve_app.state") / "lua"
        body = (folder / f"{name}.lua").read_text()
        includes = [line.removeprefix(_INCLUDE) for line in body.splitlines() if line.startswith(_INCLUDE)]
        clock = self._clock if self._clock is not None else (folder / "_clock.lua").read_text()
        included = [(folder / include).read_text() for include in includes]
        parts = [keys.prelude(self._replicas), clock, (folder / "_common.lua").read_text(), *included, body]
        self._sources[name] = source = "\n".join(parts)
        self._digests[name] = digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return digest


async def _answer(connection: Connection) -> Any:
    """Read one answer; an error of the command's own is one too, as another answer comes after it."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
