"""Starting an engine whose server may be away: a machine that is often off is no error, and is waited for in the background."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serve_app.chat.background import Background
from serve_app.chat.errors import EngineUnavailable

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 10.0
"""How long a machine that was switched on is overlooked at most."""

log = logging.getLogger(__name__)


class PatientStart:
    """Does `start` once, and where that is `EngineUnavailable`, again and again in the background until it succeeds."""

    def __init__(
        self,
        start: Callable[[], Awaitable[None]],
        *,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        """Have `start` done; between two tries are from `first_pause_s` to `longest_pause_s` seconds, each twice the last."""
        self._start = start
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._first = asyncio.Lock()
        self._tried = False
        self._done = False
        self._again = Background(self._try_again, name="engine-start", died="The engine's start is no longer tried.")
        self.why = ""
        """Why the last try failed; empty while there was none, and from the success on."""

    async def begin(self) -> None:
        """Return after the first try, however long it takes; from then on at once.

        Raises:
            Exception: what the first try raised, where it is not `EngineUnavailable`; the next call tries anew.
        """
        async with self._first:
            if self._tried:
                return
            if not await self._try():
                self._again.start()
            self._tried = True

    def check(self) -> None:
        """Return if the engine is started, or will be tried again.

        Raises:
            RuntimeError: a try has failed for a reason that waiting does not mend.
        """
        if not self._done:
            self._again.check()

    async def stop(self) -> None:
        """Try no more."""
        await self._again.stop()

    async def _try(self) -> bool:
        try:
            await self._start()
        except EngineUnavailable as error:
            if error.message != self.why:  # not once more every few seconds, for days
                log.warning("The engine cannot start yet, and is tried again until it can: %s", error.message)
            self.why = error.message
            return False
        self.why, self._done = "", True
        return True

    async def _try_again(self) -> None:
        pause_s = self._first_pause_s
        await asyncio.sleep(pause_s)
        while not await self._try():
            pause_s = min(2 * pause_s, self._longest_pause_s)
            await asyncio.sleep(pause_s)
