"""One node of the lab, as its operator, its power switch and its bad luck see it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from cluster.failures import LifecycleError
from cluster.lab import network, places
from cluster.lab.namespaces import numbers_inside, processes
from cluster.packages import ensure
from cluster.settings import PROJECT_ROOT

State = Literal["up", "frozen", "partitioned", "down"]

_TITLE = b"ray::ServeReplica:"


class Replica(NamedTuple):
    """A replica of a deployment, by the process that it is."""

    application: str
    deployment: str
    node: str
    pid: int
    """As this machine sees it, not the node."""


class Machine:
    """A node of the lab."""

    def __init__(self, name: str) -> None:
        self.name = name

    def power_on(self) -> None:
        """Start the node, with the data it had.

        Raises:
            LifecycleError: it runs already.
        """
        if self.init() is not None:
            raise LifecycleError(f"{self.name} runs already.")
        # What outlived the node's process 1 (a command of `lab exec`) must not be taken for a part of the new one.
        self._send(signal.SIGKILL)
        command = [ensure("nsenter"), f"--net={network.path(self.name)}", ensure("unshare")]
        command += ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc"]
        # As a script, not a module: what the package imports would be most of the memory of a process that needs little.
        command += [sys.executable, "-I", str(Path(__file__).with_name("init.py")), str(places.folder(self.name))]
        log = places.folder(self.name) / "log" / "init.log"
        with log.open("ab") as output:
            # `setsid --fork`: the node is nobody's child, so whoever starts it may end.
            subprocess.run(
                ["setsid", "--fork", *command],
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )
        deadline = time.monotonic() + 10
        while self.init() is None:
            if time.monotonic() > deadline:
                raise LifecycleError(f"{self.name} does not start.", logs=log)
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill everything on the node at once, as a power cut does; what it wrote to its folder stays.

        Raises:
            LifecycleError: it was not running.
        """
        init = self.init()
        if init is None:
            raise LifecycleError(f"{self.name} is down already.")
        with suppress(ProcessLookupError):
            os.kill(init, signal.SIGKILL)  # the kernel kills the rest of the PID namespace with its first process
        deadline = time.monotonic() + 10
        while processes(self.name):
            self._send(signal.SIGKILL)
            if time.monotonic() > deadline:
                raise LifecycleError(f"{self.name} does not die.")
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stop every process of the node where it stands; connections stay open, nobody answers."""
        if self.init() is None:
            raise LifecycleError(f"{self.name} is down: there is nothing to freeze.")
        while running := [pid for pid in self.inside() if _state(pid) not in ("T", "Z", "")]:
            # Once more, until none was forked meanwhile.
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._send(signal.SIGCONT)

    def init(self) -> int | None:
        """Return the number of the node's process 1, or None if the node is down."""
        return next((pid for pid in processes(self.name) if numbers_inside(pid)[1:] == [1]), None)

    def inside(self) -> list[int]:
        """Return the processes of the node, as this machine sees them."""
        return [pid for pid in processes(self.name) if len(numbers_inside(pid)) > 1]

    def state(self, unplugged: set[str]) -> State:
        """Return how the node is."""
        init = self.init()
        if init is None:
            return "down"
        if _state(init) == "T":
            return "frozen"
        return "partitioned" if self.name in unplugged else "up"

    def replicas(self) -> list[Replica]:
        """Return the replicas that live on the node; asks nobody but the kernel, so it works without a head."""
        found = []
        for pid in self.inside():
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if title.startswith(_TITLE):
                    application, deployment = title.removeprefix(_TITLE).rstrip(b"\0").decode().split(":")[:2]
                    found.append(Replica(application, deployment.partition(".")[0], self.name, pid))
        return found

    def unit(self, name: str) -> int | None:
        """Return the process of one of the node's units, as this machine sees it; None where it does not run."""
        try:
            number = json.loads((places.folder(self.name) / "running.json").read_text())[name]["pid"]
        except (FileNotFoundError, KeyError):
            return None
        return next((pid for pid in self.inside() if numbers_inside(pid)[-1] == number), None) if number else None

    def kill_unit(self, name: str, *, hold: bool = False) -> None:
        """Kill -9 one of the node's units; it is restarted after its delay, or with `hold` not before `release_unit`."""
        pid = self.unit(name)
        if pid is None:
            raise LifecycleError(f"{name} does not run on {self.name}.")
        if hold:
            (places.folder(self.name) / "hold" / name).touch()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def release_unit(self, name: str) -> None:
        """Let a unit that is held start again."""
        (places.folder(self.name) / "hold" / name).unlink(missing_ok=True)

    def command(self, command: Sequence[str]) -> list[str]:
        """Return `command` as one that runs on the node."""
        init = self.init()
        if init is None:
            raise LifecycleError(f"{self.name} is down: nothing can be run there.")
        return [ensure("nsenter"), f"--target={init}", "--net", "--pid", "--mount", "--uts", "--ipc", *command]

    def _send(self, number: signal.Signals) -> None:
        for pid in processes(self.name):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _state(pid: int) -> str:
    """Return a process's state by its letter, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _environment() -> dict[str, str]:
    """Return the environment of a fresh machine, with our own program on it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AURORA_", "RAY_"))}
    return {**env, "PYTHONPATH": str(PROJECT_ROOT), "PYTHONUNBUFFERED": "1"}
