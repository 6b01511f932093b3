"""What `aurora-cli lab` promises of itself: it says who cannot have one, nothing gets out of it, and nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from cluster.cluster_file import load
from cluster.lab import Lab, places
from cluster.lab.machine import Machine
from cluster.lab.namespaces import processes
from cluster.packages import ensure
from cluster.settings import PROJECT_ROOT
from tests.support.lab import remains, spaces
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cluster", "lab", *arguments]
    return subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    with start(*arguments) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def is_raylet(pid: int) -> bool:
    try:
        return psutil.Process(pid).name() == "raylet"
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def starting(fit: None) -> Iterator["subprocess.Popen[str]"]:
    """A `lab up` that has just begun."""
    with start("up") as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            run("down")


def test_who_is_not_root_is_told_so() -> None:
    become_nobody = "os.geteuid() or os.setuid(65534)"
    code = f"import os; from cluster.lab.up import unfit; {become_nobody}; print(unfit())"
    said = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
    assert "root" in said
    assert len(said.splitlines()) == 1


async def test_down_leaves_nothing_of_a_lab_that_was_killed_half_way(starting: "subprocess.Popen[str]") -> None:
    names = list(load(places.CLUSTER).nodes)

    def half_way() -> bool:
        assert starting.poll() is None, starting.communicate()
        return any(is_raylet(pid) for name in names for pid in processes(name))

    await until(half_way, 120)
    starting.kill()
    starting.wait()
    init = Machine("star").init()
    assert init is not None
    os.kill(init, signal.SIGKILL)
    made_of = spaces()
    assert len(made_of) == len(names) + 2  # the switch and the clients
    assert remains(made_of)
    result = run("down")
    assert (result.returncode, result.stdout.strip()) == (0, "The lab is gone.")
    assert remains(made_of) == []
    assert "no lab" in run("down").stdout


@pytest.mark.usefixtures("whole")
def test_nothing_leaves_the_machine_from_a_node_or_from_the_clients(lab: Lab) -> None:
    # An address that is nobody's, of a net for examples. Packets that got out would vanish: `timed out`.
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    for where in (*lab.nodes, places.CLIENTS):
        routes = lab.exec(where, [ensure("ip"), "-json", "route", "show"])
        assert [route["dst"] for route in json.loads(routes.stdout)] == ["198.18.0.0/24"], f"{where} has a way out"
        tried = lab.exec(where, [sys.executable, "-I", "-c", outside])
        assert tried.returncode == 1, f"{where} reached somebody"
        assert tried.stderr.splitlines()[-1] == "OSError: [Errno 101] Network is unreachable", where
