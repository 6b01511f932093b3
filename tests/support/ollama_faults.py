"""How the stand-in for Ollama can misbehave, and what it tells of what it was asked: plain data, for tests and `/control`."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass
class Faults:
    """What is wrong with the server. All off: it behaves. `None` and 0 mean: not so."""

    tokens_per_second: float | None = None
    """Speed of a reply; without it, at once."""
    status: int | None = None
    """Every request is answered with this status, like 503."""
    hang: bool = False
    """Nothing is answered any more; connections stay open."""
    hang_after: int | None = None
    """A reply hangs after so many tokens."""
    error_after: int | None = None
    """A reply breaks off with a line `{"error": …}` after so many tokens."""
    error: str = "an error was encountered while running the model: CUDA error: an illegal memory access was encountered"
    close_after: int | None = None
    """The connection is reset after so many tokens."""
    end_after: int | None = None
    """The stream ends properly after so many tokens, but without `done: true`, as where the model repeats itself for ever."""
    split_line_after: int | None = None
    """The stream ends in the middle of a line after so many tokens."""
    chunk_bytes: int = 0
    """A stream comes in chunks of so many bytes, whatever characters that cuts."""
    done_reason: str = ""
    """What the last line gives as the reason instead of `stop` or `length`; with `load`, nothing else is said."""
    slot_kept_s: float = 0.0
    """A reply that has ended keeps its slot so many seconds more, as where the server had not noticed that it was stopped."""
    no_prompt_count: bool = False
    """`prompt_eval_count` is missing, as older servers leave it out for a prompt they had in their cache."""
    load_s: float = 0.0
    """Seconds that loading a model takes."""
    load_error: str = ""
    """Loading fails with this message and 500."""
    thinks_anyway: bool = False
    """A thinking model thinks also where it is told not to."""
    prefix: Literal["continue", "refuse", "restart", "trim"] = "continue"
    """A trailing assistant message is gone on from; refused with 400; taken for an earlier reply, so that a whole new one
    follows; or gone on from without the whitespace at its end."""
    renders: bool = True
    """`_debug_render_only` is understood; older servers take no notice of it and answer."""
    pull_steps: int = 10
    """Lines of progress in a pull."""
    pull_hangs_at: int | None = None
    """A pull hangs at this step."""
    pull_error: str = ""
    """A pull ends with this error."""

    def change(self, changes: Mapping[str, Any]) -> None:
        """Set what `changes` names.

        Raises:
            ValueError: there is no such fault.
        """
        if unknown := set(changes) - {one.name for one in fields(self)}:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
        for name, value in changes.items():
            setattr(self, name, value)


@dataclass
class Counts:
    """What the server has seen."""

    live: int = 0
    """Replies that it is at now."""
    most_live: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by path."""
    loads: Counter[str] = field(default_factory=Counter)
    """How often each model was loaded."""
    truncated: int = 0
    """Replies to a prompt that had to be cut to the context window."""
    chats: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=1_000))
    """The bodies of the last requests for a reply."""

    @contextmanager
    def living(self) -> Iterator[None]:
        """Count a reply that the server is at."""
        self.live += 1
        self.most_live = max(self.most_live, self.live)
        try:
            yield
        finally:
            self.live -= 1

    def shown(self) -> dict[str, Any]:
        """Return them as JSON; the bodies stay here."""
        return {
            "live": self.live,
            "most_live": self.most_live,
            "requests": dict(self.requests),
            "loads": dict(self.loads),
            "truncated": self.truncated,
            "chats": len(self.chats),
        }
