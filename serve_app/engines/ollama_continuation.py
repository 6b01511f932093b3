"""The seam between what was said and what a model says next: nothing is repeated there, or the model is refused.

A server that takes a trailing assistant message for an earlier reply answers with a new one. Mostly that begins like the
first, so it is held back as long as it reads like what was said; once it has done so for long enough, it is no continuation.
"""

from enum import StrEnum

from serve_app.chat.errors import ContinuationRefused

TELLING = 12
"""Characters. Something shorter may well come twice in a row, like "ha ha ha"; a prefix shorter than that tells nothing."""
ENOUGH = 32
"""Characters of what was said that no continuation begins with by accident."""
THINKS = "<think>"
"""How the thoughts of a model begin where the server does not tell them apart from its reply."""


class Ending(StrEnum):
    """How a server's prompt ends where its last message is a beginning of the assistant's reply."""

    OPEN = "open"
    """With that text: the model goes on right after it."""
    TRIMMED = "trimmed"
    """The same, without the whitespace at its end: the model says it again."""
    CLOSED = "closed"
    """With anything else, like an end mark: the model would begin anew."""
    UNKNOWN = "unknown"
    """The server does not tell: what it says is looked at."""


class Seam:
    """Lets through what follows `said`. One for each continued reply."""

    def __init__(self, said: str, ending: Ending) -> None:
        self._space = said[len(said.rstrip()) :] if ending is Ending.TRIMMED else ""
        start = said.strip()
        self._start = start[:ENOUGH] if ending is Ending.UNKNOWN and len(start) >= TELLING else ""
        self._held = ""
        self._passed = not said

    def feed(self, text: str) -> str:
        """Return what of the text so far is known to be new; it may be nothing yet.

        Raises:
            ContinuationRefused: it is what was said, once more, or the model begins with its thoughts.
        """
        if self._passed:
            return text
        self._held += text
        heard = self._held.lstrip()
        if heard.startswith(THINKS):
            raise ContinuationRefused(
                "The model began to think anew instead of going on. Send the message again for a new answer."
            )
        if self._start and heard.startswith(self._start):
            raise ContinuationRefused(
                "The model began its answer anew instead of going on. Send the message again for a new one."
            )
        open_ = any(whole.startswith(heard) for whole in (THINKS, self._start) if whole)
        if open_ or (self._space and self._space.startswith(self._held)):
            return ""
        return self.end()

    def end(self) -> str:
        """Return what is still held back, at the end of the reply."""
        held, self._held, self._passed = self._held, "", True
        return held.removeprefix(self._space)
