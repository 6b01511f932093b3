"""A stand-in for systemd on a machine with an installed node: a `systemctl` that writes down what it is told."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.processes import MARK

_SYSTEMCTL = """#!/bin/sh
echo "$*" >> {folder}/told
for unit; do :; done
state=inactive
[ "$unit" = {unit} ] && state={state}
case "$1" in
    show) printf 'ActiveState=%s\\nWorkingDirectory=%s\\n' "$state" {prefix} ;;
    stop) {stop} ;;
esac
"""


class Systemd:
    """Runs `unit`, of the node installed in `prefix`; `state` is how the unit is, and `stop` what the shell does to stop it.

    Comes first on the PATH of this process.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        unit: str = "aurora-worker.service",
        prefix: Path,
        state: str = "active",
        stop: str = "true",
    ) -> None:
        folder.mkdir()
        self._told = folder / "told"
        systemctl = folder / "systemctl"
        systemctl.write_text(_SYSTEMCTL.format(folder=folder, unit=unit, prefix=prefix, state=state, stop=stop))
        systemctl.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    @property
    def changes(self) -> list[str]:
        """What it was told to do, besides showing."""
        told = self._told.read_text().splitlines() if self._told.exists() else []
        return [line for line in told if not line.startswith("show ")]


@contextmanager
def node_process(home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that belongs to the node whose home folder is `home`, for a while."""
    home.mkdir(parents=True, exist_ok=True)
    env = {"PATH": os.environ["PATH"], MARK: f"{home}:test"}
    # In a session of its own, as a node is: a Redis of the tests in the same one would be taken for a part of the node.
    with subprocess.Popen(["sleep", "60"], env=env, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()
