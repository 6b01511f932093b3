"""Doing what a fault says to the lab, and undoing it."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.lab.lab import Lab
from cluster.lab.places import CLIENTS, CLUSTER
from cluster.settings import PROJECT_ROOT
from tests.drills.faults import Fault

_LEAVES_S = 20
"""How long a node that leaves lets its answers finish before it hands them over."""


def strike(lab: Lab, fault: Fault) -> None:
    """Do what `fault` says to all its victims at the same time; not for `restart-each`."""
    with ThreadPoolExecutor(len(fault.victims)) as pool:
        list(pool.map(lambda victim: _strike(lab, fault, victim), fault.victims))


def _strike(lab: Lab, fault: Fault, victim: str) -> None:
    match fault.deed:
        case "kill":
            lab.kill(victim)
        case "kill-control":
            lab.kill("redis-control", hold=True)
        case "freeze":
            lab.freeze(victim)
        case "partition":
            lab.partition(victim)
        case "restart-each":
            raise ValueError("Nodes are restarted one by one: see `restart`.")


def undo(lab: Lab, fault: Fault) -> None:
    """Start again what was killed, heal what was frozen or cut off."""
    for victim in fault.victims:
        match fault.deed:
            case "kill":
                lab.start(victim)
            case "kill-control":
                lab.start("redis-control")
            case _:
                lab.heal(victim)


def let_leave(lab: Lab, node: str, say: Callable[[str], None]) -> None:
    """Let a node leave, as an operator does before a restart, and with it the Redis primary if it is there.

    Its door goes on meanwhile. Who keeps asking this very node, told by nobody to go elsewhere, is cut off in the end; `say`
    tells what was left.
    """
    drain = [sys.executable, "-m", "cluster", "node", "drain", node, "--timeout", str(_LEAVES_S), "--config", str(CLUSTER)]
    left = lab.exec(CLIENTS, ["env", f"--chdir={PROJECT_ROOT}", *drain], timeout=_LEAVES_S + 60)
    say(" ".join((left.stdout + left.stderr).split()))


def restart(lab: Lab, node: str) -> None:
    """Power off, power on."""
    lab.kill(node)
    lab.start(node)
