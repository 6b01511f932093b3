"""Stopping this machine's node."""

import subprocess
from pathlib import Path

import psutil

from cluster import units
from cluster.down import keep_logs
from cluster.failures import LifecycleError
from cluster.node.claim import claimed_by
from cluster.node.installation import HOME
from cluster.processes import belonging_to, end
from cluster.settings import Settings


def stop(settings: Settings) -> int:
    """Stop what `node start` started here and return how many processes that were.

    Where systemd runs the node, its unit is stopped: else it would start the node again.

    Raises:
        LifecycleError: systemd refuses, it is another user's, or something survived even SIGKILL.
    """
    found = _processes(settings)
    if unit := _unit(settings.home):
        stopped = _systemctl("stop", unit)
        if stopped.returncode != 0:
            complaint = " ".join(stopped.stderr.split()) or f"exit code {stopped.returncode}"
            raise LifecycleError(f"systemctl stop {unit} failed ({complaint}): sudo systemctl stop {unit}.")
    try:
        left = end(lambda: _processes(settings), patience=15)
    except psutil.AccessDenied:
        raise LifecycleError("The node that runs here is another user's: sudo aurora-cli node stop.") from None
    if left:
        raise LifecycleError(f"These processes do not end, not even by SIGKILL: {', '.join(str(each.pid) for each in left)}.")
    keep_logs(settings)
    return len(found)


def _processes(settings: Settings) -> list[psutil.Process]:
    """Return what runs here, and who is about to start it."""
    found, starts = belonging_to(settings.home), claimed_by(settings)
    return found if starts is None or starts in found else [*found, starts]


def _unit(home: Path) -> str | None:
    """Return the unit by which systemd runs the node whose home folder is `home`; None where it does not.

    The folder counts, as there may be another node on an installed machine: one of the lab, or of a checkout.
    """
    for unit in (units.HEAD, units.WORKER):
        lines = _systemctl("show", "--property=ActiveState,WorkingDirectory", unit).stdout.splitlines()
        shown = {name: value for name, _, value in (line.partition("=") for line in lines)}
        runs = shown.get("ActiveState", "inactive") not in ("inactive", "failed")
        if runs and (Path(shown["WorkingDirectory"]) / HOME).resolve() == home.resolve():
            return unit
    return None


def _systemctl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["systemctl", *arguments]
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # not every machine has systemd
        return subprocess.CompletedProcess(command, 127, "", "it is not on this machine")
