"""`make drills` as a command: one at a time."""

import socket
import subprocess
import sys
import time

from cluster.settings import PROJECT_ROOT
from tests.drills.__main__ import LOCK


def test_a_second_one_is_refused_at_once_in_one_line() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first:
        first.bind(LOCK)
        begun = time.monotonic()
        command = [sys.executable, "-m", "tests.drills", "--fault", "head"]
        second = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert second.stderr.splitlines() == ["Drills are under way in the lab of this machine: wait for them to end, or stop them."]
    assert second.stdout == "", "nothing was begun, no page written"
    assert time.monotonic() - begun < 30, "that is what Python takes to start on a busy machine"
