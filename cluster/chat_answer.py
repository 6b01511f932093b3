"""How an answer looks in a terminal or a pipe: written as it comes, each word once, with a note where something was lost."""

import asyncio
import contextlib
import re
import signal
import sys
import termios
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing

from rich.cells import cell_len
from rich.console import Console

from serve_app.client import Assembly, Event, Failed, NobodyAnswers, Piece, Queued, RequestRefused, Rewind, Stopped, Takeover

LINE_WIDTH = 100
"""Longer lines tire the eye, however wide the terminal is."""


class Printer:
    """Writes a reply as it comes: wrapped between words on a terminal, untouched into a pipe."""

    def __init__(self, *, width: int) -> None:
        """Wrap at `width` columns; 0: not at all."""
        self._width = width
        self._column, self._space, self._word = 0, "", ""

    def write(self, text: str) -> None:
        """Write `text`; its last word waits until it is known to be whole."""
        if not self._width:
            sys.stdout.write(text)
        else:
            # What a model says must not steer the terminal.
            safe = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
            for token in re.findall(r"\n|[^\S\n]+|\S+", safe):
                self._take(token)
        sys.stdout.flush()

    def end_line(self) -> None:
        """Write what waits, and begin a new line unless this is one."""
        self._put_word()
        if self._column or not self._width:
            sys.stdout.write("\n")
        self._column, self._space = 0, ""
        sys.stdout.flush()

    def _take(self, token: str) -> None:
        if not token.isspace():
            self._word += token
            return
        self._put_word()
        if token == "\n":
            sys.stdout.write("\n")
            self._column, self._space = 0, ""
        else:
            self._space = token

    def _put_word(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        if self._column and self._column + len(self._space) + width > self._width:
            sys.stdout.write("\n")
            self._column = 0
        else:
            sys.stdout.write(self._space)
            self._column += len(self._space)
        sys.stdout.write(self._word)
        self._column += width
        self._space = self._word = ""


class Screen:
    """Where replies and what is said about them go. Into a pipe goes only the text; the rest is beside it, on stderr."""

    def __init__(self) -> None:
        """Write to this process's stdout and stderr."""
        self.plain = not sys.stdout.isatty()
        self.out = Console(highlight=False, soft_wrap=self.plain)
        self.err = Console(highlight=False, soft_wrap=not sys.stderr.isatty(), stderr=True)
        self.printer = self.new_printer()

    def new_printer(self) -> Printer:
        """Return a printer as wide as the terminal is now, for a reply that begins; notes keep out of its way."""
        self.printer = Printer(width=0 if self.plain else min(self.out.width, LINE_WIDTH))
        return self.printer

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Keep what is typed meanwhile out of the text; the next prompt shows it."""
        if self.plain or not sys.stdin.isatty():
            yield
            return
        before = termios.tcgetattr(sys.stdin)
        silent = termios.tcgetattr(sys.stdin)
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)

    def note(self, text: str) -> None:
        """Say something about the answer, on a line of its own."""
        if not self.plain:
            self.printer.end_line()
        self.dim(f"· {text}")

    def dim(self, text: str) -> None:
        """Say something that is not the answer."""
        (self.err if self.plain else self.out).print(text, style="dim", markup=False)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        if not self.plain:
            self.printer.end_line()
        self.err.print(f"✗ {text}", style="red", markup=False)


class Answer:
    """One answer, from the question to its end."""

    def __init__(self, screen: Screen, stop: Callable[[str], Awaitable[object]]) -> None:
        """Print to `screen`; `stop` stops a turn."""
        self.assembly = Assembly()
        self.spoiled = False
        """Whether words went into a pipe that turned out not to stand; what was printed cannot be taken back."""
        self._screen = screen
        self._stop = stop
        self._begun = asyncio.Event()
        self._told = False

    async def show(self, events: AsyncGenerator[Event, None]) -> None:
        """Print `events`, which fill `assembly`, up to the end.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed a second time; the first one stops the turn.
        """
        shown, printer = 0, self._screen.new_printer()
        async with self._stoppable(), aclosing(events):
            async for event in events:
                self._begun.set()
                match event:
                    case Piece():
                        self._told = False
                        printer.write(event.text)
                        shown += len(event.text)
                    case Rewind():
                        shown = self._rewound(printer)
                    case Takeover():
                        self._screen.note(f"a machine was lost; {event.generated_on} goes on …")
                    case Queued():
                        self._tell_once(f"waiting for a free place (number {event.place}) …")
        printer.write(self.assembly.whole()[shown:])
        printer.end_line()
        end = self.assembly.end
        if isinstance(end, Failed):
            self._screen.error(f"{end.message}{' You may ask again.' if end.retryable else ''}")
        elif isinstance(end, Stopped):
            self._screen.dim("(stopped)")

    def lost(self) -> None:
        """Say that the connection was lost, once until there is news."""
        self._tell_once("connection lost, resuming …" if self._begun.is_set() else "no answer yet, trying again …")

    @contextlib.asynccontextmanager
    async def _stoppable(self) -> AsyncIterator[None]:
        """Let the first Ctrl-C stop the turn, wherever it runs, and the second one leave it."""
        loop, reader = asyncio.get_running_loop(), asyncio.current_task()
        stopping: list[asyncio.Task[None]] = []

        def pressed() -> None:
            if stopping and reader is not None:
                reader.cancel()
            else:
                self._screen.note("stopping …  (Ctrl-C again leaves at once)")
                stopping.append(asyncio.create_task(self._stop_when_begun()))

        loop.add_signal_handler(signal.SIGINT, pressed)
        try:
            yield
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            for task in stopping:
                task.cancel()
            await asyncio.gather(*stopping, return_exceptions=True)

    async def _stop_when_begun(self) -> None:
        await self._begun.wait()
        with contextlib.suppress(RequestRefused, NobodyAnswers):
            await self._stop(self.assembly.turn_id)

    def _rewound(self, printer: Printer) -> int:
        """Show what is left of the answer, and return how much that is."""
        left = "".join(piece.text for piece in self.assembly.pieces)
        if self._screen.plain:
            self.spoiled = True
            self._screen.error(
                "The last words were lost with a machine, and what was printed cannot be taken back; ask for the history."
            )
            return len(left)
        self._screen.note("the last words were lost with a machine; the answer again:")
        printer.write(left)
        return len(left)

    def _tell_once(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._screen.note(text)
