"""CPU time of the processes of a system under test, by what they do."""

import collections
from collections.abc import Iterable

import psutil


def seconds_by_role(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """Return user + system seconds so far, by role."""
    spent: dict[str, float] = collections.defaultdict(float)
    for process in processes:
        try:
            times = process.cpu_times()
            spent[_role(process)] += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return dict(spent)


def _role(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    line = " ".join(words)
    if line.startswith("ray::ServeReplica:"):
        return line.split()[0].rsplit(":", 1)[1].lower()
    for role in ("haproxy", "redis-server", "gcs_server", "raylet"):
        if role in words[0]:
            return role
    if "ServeController" in line:
        return "serve controller"
    if "tests.bench.baseline" in line:
        return "one process"
    return "rest of ray" if "ray" in line else "other"
