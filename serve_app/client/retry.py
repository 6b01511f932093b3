"""When a node says no, or nothing: what is final, what is tried again, how fast and for how long.

A caller of the client library meets `RequestRefused` and `NobodyAnswers`; everything else it gets over by itself.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import httpx

LONGEST_PAUSE_S = 2.0
_WAIT_FOR_A_PERSON = frozenset({"turn_in_progress"})
"""Retryable, but when is not for a program to guess."""


class RequestRefused(Exception):
    """Aurora said no. `message` is for people; `turn_id` names the turn concerned, if any."""

    def __init__(self, code: str, message: str, retryable: bool = False, *, turn_id: str = "") -> None:
        """Keep what the error body says."""
        super().__init__(code, message, retryable)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.turn_id = turn_id

    def __str__(self) -> str:
        """Return the message."""
        return self.message


class NobodyAnswers(Exception):
    """No node answered for as long as the client is patient. A turn that had begun goes on by itself: see `turn_id`."""

    def __init__(self, nodes: Sequence[str], last: str, what_to_do: str, *, turn_id: str = "") -> None:
        """Keep who was asked, what happened last, and what a person can do."""
        super().__init__(nodes, last, what_to_do)
        self.nodes = tuple(nodes)
        self.last = last
        self.what_to_do = what_to_do
        self.turn_id = turn_id

    def __str__(self) -> str:
        """Return it in one sentence or two."""
        return f"Nobody answers at {', '.join(self.nodes)} ({self.last}). {self.what_to_do}"


class Away(Exception):
    """A node did not answer, or answered that it cannot now. Inside the library only."""

    def __init__(self, why: str, *, after_s: float = 0.0) -> None:
        """Keep why, and how long the node asks to wait."""
        super().__init__(why)
        self.after_s = after_s


class Patience:
    """How long to go on trying, and how fast: at once, then ever more slowly, with chance in it."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """Somebody is there."""
        self._tries = 0
        self._until = asyncio.get_running_loop().time() + self._limit_s

    async def wait(self, why: str, nodes: Sequence[str], *, after_s: float = 0.0, turn_id: str = "", aftermath: str = "") -> None:
        """Return when it is time for the next try; `aftermath` says what became of the request otherwise.

        Each of the `nodes` is tried at once; only then is it time to wait.

        Raises:
            NobodyAnswers: it is not worth it any more.
        """
        doublings = self._tries - len(nodes)
        pause = 0.0 if doublings < 0 else min(LONGEST_PAUSE_S, 0.1 * 2 ** min(doublings, 8)) * random.uniform(0.5, 1.0)
        pause = max(pause, after_s)
        self._tries += 1
        if asyncio.get_running_loop().time() + pause > self._until:
            what = f"Is Aurora up there? `aurora-cli status` shows it, `aurora-cli up` starts it. {aftermath}".rstrip()
            raise NobodyAnswers(nodes, why, what, turn_id=turn_id)
        await asyncio.sleep(pause)


def reason(error: Exception) -> str:
    """Return in a few words why a node did not answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "no connection"
    return str(error) or type(error).__name__


def refusal_of(body: Any) -> RequestRefused:
    """Return the refusal that an error of Aurora's shape says.

    Raises:
        KeyError, TypeError, AttributeError: it has not that shape.
    """
    error = body["error"]
    return RequestRefused(error["code"], error["message"], bool(error["retryable"]), turn_id=error.get("turn_id") or "")


def is_final(refused: RequestRefused) -> bool:
    """Say whether trying again changes nothing, or is for a person to decide."""
    return not refused.retryable or refused.code in _WAIT_FOR_A_PERSON


def check(response: httpx.Response) -> None:
    """Return if the answer is a good one.

    Raises:
        RequestRefused: Aurora said no.
        Away: not now, or whoever speaks there is not (yet) Aurora.
    """
    if response.is_success:
        return
    try:
        refused = refusal_of(json.loads(response.content))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Away(f"HTTP {response.status_code} from something that is not Aurora, or not yet") from None
    if is_final(refused):
        raise refused
    after = response.headers.get("Retry-After", "")
    raise Away(f"{refused.code}: {refused.message}", after_s=min(float(after), 5.0) if after.isdigit() else 0.0)
