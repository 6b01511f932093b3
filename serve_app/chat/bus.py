"""The port of live events: what happens to one client's turns, as it happens, to whoever listens.

Best effort, as pub/sub is; what must not be missed is in the log (`serve_app.chat.turns`). Implemented in `serve_app.state`.
"""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from serve_app.chat.events import Event


class Subscription(Protocol):
    """What one listener hears of one client's turns."""

    async def next(self, timeout: float) -> list[Event] | None:
        """Return the next batch of events, or None when nothing came for `timeout` seconds or something was missed.

        None means: read the log. It comes at once after a resubscription, and when the listener was too slow.
        """
        ...


class Bus(Protocol):
    """Live events of a client, best effort: whoever needs them whole reads the log (design, "Following a turn")."""

    def listen(self, client_id: str, *, turn_id: str = "") -> AbstractAsyncContextManager[Subscription]:
        """Listen to a client's channel; entered only once the subscription is confirmed, or known to be broken."""
        ...
