"""The seam between what was said and what a server that cannot be asked says next: nothing is repeated there.

What was said is sent without the whitespace at its end, because many templates drop it and tokens hardly ever begin after it; the
model says it again, and it is taken off here. A server may also echo what was said, or begin anew with the same words: as long as
what comes reads like that, it is held back. Once all of it has come again, what follows is its continuation, whichever it was;
where it becomes another text on the way, it is a new answer. A new answer in other words cannot be told from a continuation: that
is why the configuration says whether a server goes on.
"""

from serve_app.chat.errors import ContinuationRefused
from serve_app.engines.ollama_continuation import ENOUGH, TELLING, THINKS


class EchoSeam:
    """Lets through what follows `said`. One for each reply."""

    def __init__(self, said: str) -> None:
        self.sent = said.rstrip()
        """What the server is to go on from."""
        self._space = said[len(self.sent) :]
        start = said.strip()
        self._start = start if len(start) >= TELLING else ""
        self._echoed = 0
        self._held, self._lead = "", ""
        self._passed = not said

    def feed(self, text: str) -> str:
        """Return what of the text so far is known to be new; it may be nothing yet.

        Raises:
            ContinuationRefused: it is a new answer, or the model begins with its thoughts.
        """
        if self._passed:
            return text
        self._held += text
        if self._start and self._all_echo():
            return ""
        heard = self._held.lstrip()
        if heard.startswith(THINKS):
            raise ContinuationRefused(
                "The model began to think anew instead of going on. Send the message again for a new answer."
            )
        return "" if THINKS.startswith(heard) else self._pass()

    def end(self) -> str:
        """Return what is still held back, at the end of the reply.

        Raises:
            ContinuationRefused: it is what was said, once more, and breaks off in the middle of it.
        """
        if self._passed:
            return ""
        if self._start and self._echoed >= TELLING:
            raise _anew()
        if self._echoed and self._start:
            self._held = self._lead + self._start[: self._echoed]
        return self._pass()

    def _all_echo(self) -> bool:
        """Say whether all that is held may be an echo, which is then let go: a long one costs no more than to read it once."""
        new = self._held
        if not self._echoed:  # whitespace before it does not count
            new = self._held.lstrip()
            self._lead = self._held[: len(self._held) - len(new)]
        same = _alike(self._start[self._echoed : self._echoed + len(new)], new)
        if same == len(new) < len(self._start) - self._echoed:
            self._held = "" if new else self._held
            self._echoed += same
            return True
        self._echoed += same
        if self._echoed == len(self._start):
            self._held, self._start = new[same:], ""
        elif self._echoed >= ENOUGH:
            raise _anew()
        elif before := self._echoed - same:  # it was none after all
            self._held, self._start = self._lead + self._start[:before] + new, ""
        else:
            self._start = ""
        return False

    def _pass(self) -> str:
        held, self._held, self._passed = self._held, "", True
        return held[_alike(held, self._space) :]


def _alike(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))


def _anew() -> ContinuationRefused:
    return ContinuationRefused("The model began its answer anew instead of going on. Send the message again for a new one.")
