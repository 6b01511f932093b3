"""Steps on a terminal: one line each, with a moving one while it lasts where somebody can see it move."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Shows what is being done and how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Print a line, as it is."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show `text` while the block runs, and as done if it ends well. Yields a way to add a detail."""
        started = time.monotonic()
        with self._console.status(text) as status:

            def detail(more: str) -> None:
                status.update(f"{text}  [dim]{more}[/dim]")

            yield detail
        self.say(f"  ✓ {text}  ({time.monotonic() - started:.1f} s)")
