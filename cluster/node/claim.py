"""One node per home folder: whoever starts one claims it, and keeps the claim as the Ray that it turns into.

The claim is a name of the kernel's (an abstract Unix socket), which goes with the process, however that ends, and tells every
user of the machine who has it. Linux only; elsewhere nobody claims anything.
"""

import os
import socket
import struct
import sys

import psutil

from cluster.failures import LifecycleError
from cluster.settings import Settings


def claim(settings: Settings) -> None:
    """Claim the home folder for this process, and for what it turns into by `exec`.

    Raises:
        LifecycleError: another one has it.
    """
    if not sys.platform.startswith("linux"):
        return
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(_name(settings))
    except OSError:
        held.close()
        raise LifecycleError("A node of Aurora runs here already: aurora-cli status; aurora-cli node stop.") from None
    held.listen()
    os.set_inheritable(held.detach(), True)  # it is closed by nobody: the kernel does it


def claimed_by(settings: Settings) -> psutil.Process | None:
    """Return the process that has the claim: it starts a node, or has become one."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1)
        try:
            asking.connect(_name(settings))
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return psutil.Process(struct.unpack("3i", credentials)[0])
        except (OSError, psutil.NoSuchProcess):
            return None


def _name(settings: Settings) -> str:
    return f"\0{settings.ray_folder.name}-node"
