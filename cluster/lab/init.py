"""Process 1 of a lab node, its systemd: starts what lives on the node, restarts what dies, takes in orphans.

Run as a script, `python init.py FOLDER`, in namespaces of its own. What to run stands in FOLDER/units.json; what runs is
written to FOLDER/running.json; a unit with a file FOLDER/hold/NAME is not started. Standard library only, as it must be small.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

_LOOK_S = 0.5
_MS_NOSUID, _MS_NODEV, _MS_BIND = 2, 4, 4096


class Unit:
    """Something that is to run on the node."""

    def __init__(self, spec: dict[str, Any], *, again: bool) -> None:
        self.name: str = spec["name"]
        self.command: list[str] = spec["command"]
        self.environment: dict[str, str] = spec["environment"]
        self.restart_s: float = spec["restart_s"]
        self.pid = 0
        self.starts = 0
        self.due = time.monotonic() + (self.restart_s if again else spec["first_s"])

    def start(self, log: Path) -> None:
        """Start it, in a session of its own."""
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        environment = {**os.environ, **self.environment}
        self.pid = os.posix_spawn(self.command[0], self.command, environment, file_actions=actions, setsid=True, setsigmask=[])
        self.starts += 1

    def ended(self) -> None:
        """Note that it has ended: it is due again after its delay."""
        self.pid = 0
        self.due = time.monotonic() + self.restart_s


def main(folder: Path) -> None:
    """Never returns: the node lives as long as this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    _mount(folder)
    socket.sethostname(folder.name)
    spec = json.loads((folder / "units.json").read_text())
    started_before = folder / "started"
    units = [Unit(each, again=started_before.exists()) for each in spec]
    started_before.touch()
    while True:
        changed = _start_due(units, folder)
        if changed | _reap(units):
            _write(units, folder)
        else:
            signal.sigtimedwait({signal.SIGCHLD}, _LOOK_S)


def _start_due(units: list[Unit], folder: Path) -> bool:
    changed = False
    for unit in units:
        if not unit.pid and time.monotonic() >= unit.due and not (folder / "hold" / unit.name).exists():
            unit.start(folder / "log" / f"{unit.name}.log")
            changed = True
    return changed


def _reap(units: list[Unit]) -> bool:
    changed = False
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return changed
        if pid == 0:
            return changed
        for unit in units:
            if unit.pid == pid:
                unit.ended()
                changed = True


def _write(units: list[Unit], folder: Path) -> None:
    temporary = folder / "running.json.new"
    temporary.write_text(json.dumps({unit.name: {"pid": unit.pid, "starts": unit.starts} for unit in units}))
    temporary.replace(folder / "running.json")


def _mount(folder: Path) -> None:
    """Give the node a /proc, a /dev/shm and a /tmp of its own; in the last, our own program stays where it is."""
    _mount_one("proc", "/proc", "proc", 0)
    _mount_one("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=512m")
    kept = {path: os.open(path, os.O_PATH) for path in _ours() if path.is_relative_to("/tmp")}
    _mount_one(str(folder / "tmp"), "/tmp", "", _MS_BIND)
    for path, opened in kept.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount_one(f"/proc/self/fd/{opened}", str(path), "", _MS_BIND)
        os.close(opened)
    _mount_one(str(folder.parent / "hosts"), "/etc/hosts", "", _MS_BIND)


def _ours() -> set[Path]:
    return {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parents[2]}


def _mount_one(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {target}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
