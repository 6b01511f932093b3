"""What systemd runs on a node. The unit files here are complete for `/opt/aurora-node`; another folder is filled in.

Each unit of a node hangs on `aurora.target`, so that one name starts and stops all of Aurora on a machine.
"""

import shutil
import subprocess
from pathlib import Path

from cluster import redis_conf
from cluster.cluster_file import NodeSpec
from cluster.failures import LifecycleError

PREFIX = Path("/opt/aurora-node")
"""Where a node of Aurora lives."""

USER = "aurora"
"""Whom the units run as."""

TARGET = "aurora.target"
HEAD, WORKER = "aurora-head.service", "aurora-worker.service"

_HERE = Path(__file__).parent
_SYSTEM = Path("/etc/systemd/system")
_TMPFILES, _TMPFILES_PLACE = "aurora-tmpfiles.conf", Path("/etc/tmpfiles.d/aurora.conf")


def of_node(node: NodeSpec, *, is_head: bool) -> list[str]:
    """Return the names of the units that belong on `node`, in the order in which to start them."""
    here = {redis_conf.REDIS: bool(node.redis), redis_conf.SENTINEL: node.sentinel, redis_conf.CONTROL: node.control_redis}
    return [*(f"aurora-{name}.service" for name, there in here.items() if there), HEAD if is_head else WORKER, TARGET]


def write(names: list[str], *, prefix: Path, programs: dict[str, str]) -> Path:
    """Write the units `names` for the node in `prefix` to its folder `units`, and return that.

    `programs` are the paths of the machine's Redis programs, by name.
    """
    folder = prefix / "units"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in [*names, _TMPFILES]:
        text = (_HERE / name).read_text(encoding="utf-8").replace(str(PREFIX), str(prefix))
        for program, path in programs.items():
            text = text.replace(f"/usr/bin/{program} ", f"{path} ")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def hand_to_systemd(folder: Path, names: list[str]) -> list[str]:
    """Install the units of `folder` and have them start with the machine; return those of ours that are there besides.

    Starts nothing, and stops nothing.

    Raises:
        LifecycleError: systemd refuses.
    """
    for name in names:
        shutil.copyfile(folder / name, _SYSTEM / name)
    shutil.copyfile(folder / _TMPFILES, _TMPFILES_PLACE)
    _systemctl("daemon-reload")
    _systemctl("enable", *names)
    ours = {path.name for path in _HERE.glob("aurora*.service")} - set(names)
    return sorted(name for name in ours if (_SYSTEM / name).exists())


def runs_systemd() -> bool:
    """Tell whether systemd is what runs this machine."""
    return Path("/run/systemd/system").is_dir()


def enabled(unit: str) -> bool:
    """Tell whether a unit starts with the machine."""
    result = subprocess.run(["systemctl", "is-enabled", unit], capture_output=True, text=True, check=False)
    return result.stdout.strip() == "enabled"


def disable(*names: str) -> None:
    """Let units no longer start with the machine.

    Raises:
        LifecycleError: systemd refuses.
    """
    _systemctl("disable", *names)


def _systemctl(*arguments: str) -> None:
    result = subprocess.run(["systemctl", "--quiet", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        complaint = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise LifecycleError(f"systemctl {' '.join(arguments)} failed: {complaint}.")
