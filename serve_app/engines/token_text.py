"""The text behind token ids, let out only where a log may be cut.

A reply is cut between two pieces when its replica dies, and another one goes on from the logged ids. `TokenText` is a function
of the ids alone, and gives out a stretch of text only together with all the ids behind it. So whoever feeds it the ids of a log
has it in the state in which the dead one was at that cut: characters of several tokens, and stop strings across the cut, come
out as if nothing had happened. Knows nothing of any engine; `decode` is all it needs of a tokenizer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

Decode = Callable[[Sequence[int]], str]

_CONTEXT = 5
"""Tokens before the reply that are decoded with its first ones: some tokenizers drop a space at the very beginning."""
_PATIENCE = 16
"""Tokens after which bytes that still are no character are let out as U+FFFD: no character has that many bytes."""
_NO_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class _Stretch:
    """Whole characters and the tokens behind them; `said`: they are out already."""

    text: str
    ids: tuple[int, ...]
    said: bool = False


class TokenText:
    """Reads the tokens of one reply in their order.

    `stopped` becomes true when a stop string is complete; from then on nothing is read any more, and neither the stop string nor
    what follows it is ever given out.
    """

    def __init__(self, decode: Decode, *, context: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        """Read with `decode` after the prompt `context`, up to one of the strings in `stop`."""
        self._decode = decode
        self._stop = tuple(stop)
        self._context = tuple(context[-_CONTEXT:])
        self._context_text = decode(self._context)
        self._open: list[int] = []
        self._held: list[_Stretch] = []
        self.stopped = False

    def read(self, ids: Iterable[int]) -> None:
        """Read further tokens."""
        for token_id in ids:
            if self.stopped:
                return
            self._read_one(token_id)

    def take(self) -> tuple[str, tuple[int, ...]]:
        """Return what can be given out, text and ids, once; both empty where nothing can.

        Held back are characters that are not whole yet, and what may become a stop string.
        """
        return self._release(0 if self.stopped else self._begun_stop())

    def finish(self) -> tuple[str, tuple[int, ...]]:
        """Return what is left at the end of the reply. Bytes that never became a character are dropped with their ids."""
        return self._release(0)

    def resume(self, text: str, ids: Sequence[int]) -> bool:
        """Go on after `text`, which was said with these `ids`; return false, and be of no further use, if they do not agree."""
        self.read(ids)
        said = self.take()[0] + self._held_text()
        self._held = [replace(stretch, said=True) for stretch in self._held]
        return said == text and not self._open

    def resume_after(self, text: str) -> None:
        """Go on after `text`, whose ids are not known: a stop string may begin in it."""
        longest = max(map(len, self._stop), default=0)
        self._held = [_Stretch(character, (), said=True) for character in text[max(0, len(text) - longest) :]]

    def _read_one(self, token_id: int) -> None:
        self._open.append(token_id)
        text = self._decode((*self._context, *self._open))
        new = text[len(self._context_text) :]
        if not new or (text.endswith(_NO_CHARACTER) and len(self._open) < _PATIENCE):
            return
        self._held.append(_Stretch(new, tuple(self._open)))
        self._context, self._open = tuple(self._open[-_PATIENCE:]), []
        self._context_text = self._decode(self._context)
        held = self._held_text()
        found = [at for stop in self._stop if (at := held.find(stop)) >= 0]
        if found:
            self._cut(min(found))

    def _cut(self, end: int) -> None:
        """Keep the text up to `end`, with the ids of all of it, so that whoever reads them again finds the stop string too."""
        said = [stretch for stretch in self._held if stretch.said]
        text = self._held_text()[sum(len(stretch.text) for stretch in said) : end]
        ids = tuple(token_id for stretch in self._held if not stretch.said for token_id in stretch.ids)
        self._held = [_Stretch(text, ids)] if text else []
        self.stopped = True

    def _held_text(self) -> str:
        return "".join(stretch.text for stretch in self._held)

    def _begun_stop(self) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        held = self._held_text()
        lengths = (size for stop in self._stop for size in range(1, len(stop)) if held.endswith(stop[:size]))
        return max(lengths, default=0)

    def _release(self, keep: int) -> tuple[str, tuple[int, ...]]:
        """Give out from the front, whole stretches only, but for the last `keep` characters."""
        text, left = "", len(self._held_text())
        ids: list[int] = []
        while self._held and left - len(self._held[0].text) >= keep:
            stretch = self._held.pop(0)
            left -= len(stretch.text)
            if not stretch.said:
                text += stretch.text
                ids += stretch.ids
        return text, tuple(ids)
