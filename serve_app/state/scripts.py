"""Running the Lua scripts: loaded once, called by digest, retried while Redis is away.

A lost reply is not a lost write: every script is idempotent, so a retry is always safe (law 9).
"""

import asyncio
import hashlib
import logging
import random
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from serve_app.chat.errors import StoreUnavailable
from serve_app.state import keys
from serve_app.state.connection import Redis, is_away

log = logging.getLogger(__name__)
_INCLUDE = "-- include: "


class Scripts:
    """The scripts of `lua/`, ready to run on one Redis."""

    def __init__(self, redis: Redis, *, patience_s: float = 10.0, clock: str | None = None) -> None:
        """Use `redis`; a call that finds it away tries again for `patience_s` seconds unless it says otherwise.

        `clock` replaces `_clock.lua`: only tests of jumping clocks give it.
        """
        self._redis = redis
        self._patience_s = patience_s
        self._clock = clock
        self._sources: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self.away_since: float | None = None

    async def run(self, name: str, *args: str | int | bytes, patience_s: float | None = None) -> Any:
        """Run the script `name` and return Redis's reply.

        Raises:
            StoreUnavailable: Redis was away for longer than the patience; the script may or may not have run.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + (self._patience_s if patience_s is None else patience_s)
        pause = 0.02
        while True:
            try:
                reply = await self._once(name, args)
            except Exception as error:
                if not is_away(error):
                    raise
                if self.away_since is None:
                    self.away_since = loop.time()
                    log.warning("Redis is away (%s: %s); trying again.", type(error).__name__, error)
                if loop.time() + pause > give_up:
                    raise StoreUnavailable() from error
            else:
                if self.away_since is not None:
                    log.warning("Redis is back after %.1f s.", loop.time() - self.away_since)
                    self.away_since = None
                return reply
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(pause * 2, 0.5)

    async def _once(self, name: str, args: tuple[str | int | bytes, ...]) -> Any:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            return await self._evaluate(name, args)
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

    def _load(self, name: str) -> str:
        folder = files("serve_app.state") / "lua"
        body = (folder / f"{name}.lua").read_text()
        includes = [line.removeprefix(_INCLUDE) for line in body.splitlines() if line.startswith(_INCLUDE)]
        clock = self._clock if self._clock is not None else (folder / "_clock.lua").read_text()
        parts = [keys.prelude(), clock, (folder / "_common.lua").read_text(), *((folder / i).read_text() for i in includes), body]
        self._sources[name] = source = "\n".join(parts)
        self._digests[name] = digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        return digest
