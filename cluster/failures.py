"""What goes wrong in the life of a local Aurora, in words for the person at the terminal."""

from pathlib import Path


class LifecycleError(Exception):
    """Something a person can act on: one line that says what is wrong and what to do."""

    def __init__(self, message: str, *, logs: Path | None = None) -> None:
        super().__init__(message)
        self.logs = logs
