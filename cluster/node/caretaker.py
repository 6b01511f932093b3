"""The caretaker: who answers at a node's own port while its Ray starts, or cannot start: the other nodes.

A machine whose Ray is away is not dead, but its port would be closed: for the seconds that Ray takes to start, and for as long
as the head or Ray's control Redis is away, without which no Ray starts. Meanwhile an HAProxy listens there and sends everything
on to the other nodes, with the configuration of `aurora-cli lb haproxy`. It is a child of the process that turns into Ray, and
ends with it at the latest. Serve's HAProxy, once it knows an ingress, takes the port over from it without a gap
(`haproxy_wrapper.sh`), and it ends with its last connection.
"""

import contextlib
import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

import psutil

from cluster.balancer import render
from cluster.balancer.backends import Backend
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.ray_environment import haproxy_binary
from cluster.settings import Settings

PID_FILE = "AURORA_CARETAKER"
"""Environment variable: the file with the number of the caretaker's process. Read by `haproxy_wrapper.sh`."""

_LISTENS_S = 5.0
_END_S = 5.0
_PR_SET_PDEATHSIG = 1


class Caretaker:
    """The one of this machine; may be nobody, where there is no HAProxy, no other node, or no free port."""

    def __init__(self, cluster: ClusterFile, name: str, node: NodeSpec, *, settings: Settings) -> None:
        """Prepare the one of `node`, whose files are to lie in its home folder."""
        self._others = [
            Backend(each, spec.address, cluster.port) for each, spec in cluster.nodes.items() if spec.address != node.address
        ]
        self._front = render.Front(cluster.port, caretaker=name)
        self._config, self._pid_file = settings.home / "caretaker.cfg", settings.home / "caretaker.pid"
        self._log = settings.logs / "caretaker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What Ray must have in its environment, so that Serve's HAProxy finds whom to take the port over from."""
        return {PID_FILE: str(self._pid_file)}

    @property
    def answers(self) -> bool:
        """Whether it is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, env: Mapping[str, str], *, say: Callable[[str], None]) -> None:
        """Have the other nodes answer at this node's port from now on. Where that cannot be, it is said, and the node starts."""
        binary = haproxy_binary()
        if binary is None or not self._others:
            return
        try:
            self._run(binary, env)
        except OSError as error:
            self.end()
            say(f"Until Ray serves here, port {self._front.port} is closed: {error}.")
        else:
            say(f"Until Ray serves here, port {self._front.port} is answered by {', '.join(each.name for each in self._others)}.")

    def _run(self, binary: str, env: Mapping[str, str]) -> None:
        for file in (self._pid_file, self._config, self._log):  # not written over: they may be another user's
            file.unlink(missing_ok=True)
            file.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_text(render.haproxy(self._others, self._front))
        command, said = [binary, "-db", "-f", str(self._config)], self._log.open("wb")
        with said:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                # What carries our mark makes its session ours (`cluster.processes`): a shell's is not.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + _LISTENS_S
        while not self._listens():
            if not self.answers:
                raise OSError(f"its HAProxy has ended ({self._log} says why)")
            if time.monotonic() > deadline:
                raise OSError(f"its HAProxy does not listen after {_LISTENS_S:g} s")
            time.sleep(0.01)
        self._pid_file.write_text(f"{self._process.pid}\n")

    def _listens(self) -> bool:
        assert self._process is not None
        try:
            found = psutil.Process(self._process.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == self._front.port for each in found)

    def end(self) -> None:
        """Close the port: this node does not start after all."""
        with contextlib.suppress(OSError):
            self._pid_file.unlink(missing_ok=True)
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end_with_parent() -> None:
    """Have the kernel end this process with the one that started it, whatever that has become meanwhile."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
