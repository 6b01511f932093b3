"""What all commands share at the terminal: where they write, how they fail, how they are interrupted."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from cluster.failures import LifecycleError

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what a person can act on into one line and exit code 1."""
    try:
        yield
    except LifecycleError as error:
        logs_note = f" Logs: {error.logs}" if error.logs else ""
        _fail(f"{error}{logs_note}")
    except KeyboardInterrupt:
        err.print("Interrupted.")
        raise typer.Exit(130) from None


@contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Let a closed terminal and a polite kill end a command as Ctrl-C does: by stopping what it started."""

    def interrupt(number: int, _frame: object) -> NoReturn:
        # What is being stopped is stopped to the end.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    # What whoever started this has it ignore (nohup) is ignored, here and by what it turns into.
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> NoReturn:
    err.print("[bold red]✗[/bold red]", end=" ")
    err.print(message, markup=False)
    raise typer.Exit(1)
