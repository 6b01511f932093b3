"""The crowd as a program in the clients' network of the lab, told when to stop."""

import selectors
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from cluster.lab.lab import Lab
from cluster.lab.places import CLIENTS
from cluster.settings import PROJECT_ROOT
from tests.drills.crowd import PLAN, Plan
from tests.drills.seen import LOAD, Load


class CrowdFailed(Exception):
    """The program of the crowd ended early, or not at all; carries the end of what it said."""


class CrowdProcess:
    """`tests.drills.load` at work. Use as a context manager: it ends with it."""

    def __init__(self, lab: Lab, plan: Plan) -> None:
        """Be the crowd of `plan`."""
        self._lab, self._plan = lab, plan

    def __enter__(self) -> "CrowdProcess":
        """Let it begin to ask."""
        self._folder = TemporaryDirectory(prefix="aurora-drill-")
        folder = Path(self._folder.name)
        (folder / "plan.json").write_bytes(PLAN.dump_json(self._plan))
        self._out, self._errors = folder / "seen.json", folder / "errors"
        command = [sys.executable, "-m", "tests.drills.load", str(folder / "plan.json"), str(self._out)]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                self._lab.command(CLIENTS, command),
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def wait_until_asked(self, timeout: float) -> None:
        """Return when every client's first answer is under way.

        Raises:
            CrowdFailed: it ended, or that did not come about in time.
        """
        output = self._pipe(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            if not selector.select(timeout) or output.readline() != b"asked\n":
                raise CrowdFailed(f"The crowd did not get to ask within {timeout:.0f} s. {self._said()}")

    def let_nobody_ask_again(self) -> None:
        """Let every client stop after the answer that it waits for."""
        self._tell(b"last\n")

    def seen(self, timeout: float) -> Load:
        """Wait until every client has its answer, and return what was seen.

        Raises:
            CrowdFailed: it did not end well, or not in time.
        """
        self._tell(b"end\n")
        deadline = time.monotonic() + timeout
        try:
            code = self._process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise CrowdFailed(f"The crowd was not done within {timeout:.0f} s. {self._said()}") from None
        if code != 0:
            raise CrowdFailed(f"The crowd ended with {code}. {self._said()}")
        return LOAD.validate_json(self._out.read_bytes())

    def _tell(self, line: bytes) -> None:
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(line)
            pipe.flush()
        except BrokenPipeError:
            raise CrowdFailed(f"The crowd has ended too early. {self._said()}") from None

    def _said(self) -> str:
        return self._errors.read_text(errors="replace").strip()[-500:]

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe
