"""CPU time of the processes of a system under test, by what they do, and their memory."""

import collections
import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import psutil


class Spent(NamedTuple):
    """What processes have spent so far, in seconds; of each its role and its time, by number and start."""

    each: dict[tuple[int, float], tuple[str, float]]

    def since(self, before: "Spent") -> dict[str, float]:
        """Return what was spent since `before`, by role; what had ended by now is left out."""
        spent: dict[str, float] = collections.defaultdict(float)
        for key, (role, seconds) in self.each.items():
            spent[role] += seconds - before.each.get(key, ("", 0.0))[1]
        return dict(spent)


def spent(pids: Iterable[int]) -> Spent:
    """Return what these processes have spent; those that are no more are left out."""
    each = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            process = psutil.Process(pid)
            times = process.cpu_times()
            each[pid, process.create_time()] = (_role(process), times.user + times.system)
    return Spent(each)


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the memory of these processes together (PSS: what some share is counted once); only as root it is all of it."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            total += psutil.Process(pid).memory_full_info().pss
    return total


def machine_busy_s() -> float:
    """Return the seconds for which the cores of this machine were not idle so far, all cores together."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _role(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    line = " ".join(words)
    if line.startswith("ray::ServeReplica:"):
        return line.split()[0].rsplit(":", 1)[1].lower()
    for role in ("haproxy", "redis-server", "redis-sentinel", "gcs_server", "raylet"):
        if role in words[0]:
            return role
    if "ServeController" in line:
        return "serve controller"
    for program, role in (("tests.bench.baseline", "one process"), ("fast_ollama", "stand-in"), (".venv-litellm", "litellm")):
        if program in line:
            return role
    return "rest of ray" if "ray" in line else "other"
