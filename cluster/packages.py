"""Programs of the operating system that parts of Aurora need: found, installed where we may, else asked for by name."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.failures import LifecycleError

_PACKAGES = {
    "redis-server": "redis-server",
    "redis-sentinel": "redis-sentinel",
    "redis-cli": "redis-tools",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "caddy": "caddy",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "docker-compose": "docker-compose",
    "systemd-analyze": "systemd",
}
_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Debian starts a service with its package unless this file says no.
_POLICY = Path("/usr/sbin/policy-rc.d")
_LOCK = Path("/run/lock/aurora-packages")
_LOCK_WAIT_S = 120
"""How long another's installation may hold us up."""
_NO_SERVICES = "#!/bin/sh\nexit 101\n"


def find(program: str) -> str | None:
    """Return the path of the system's `program`, or None if it is not there.

    The system's folders come before the PATH, as a user's PATH leaves those of the administrator out; the folder of this Python
    environment does not count, as it brings an older `redis-server` along.
    """
    ours = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and Path(folder) != ours]
    return shutil.which(program, path=os.pathsep.join([_SYSTEM_FOLDERS, *folders]))


def ensure(program: str) -> str:
    """Return the path of `program`; where it is missing, install its Debian package without starting its service.

    Raises:
        LifecycleError: it is missing and cannot be installed; says what to install.
    """
    if path := find(program):
        return path
    package = _PACKAGES.get(program, program)
    advice = f"install the package {package} (on Debian: sudo apt-get install {package})"
    apt = find("apt-get")
    if apt is None or os.geteuid() != 0:
        raise LifecycleError(f"{program} is not on this machine: {advice}.")
    with _alone():
        complaint = "" if find(program) else _install(apt, package)
    if path := find(program):
        return path
    raise LifecycleError(f"{program} is not on this machine and could not be installed ({complaint}): {advice}.")


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process of ours installs anything."""
    with _LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(apt: str, package: str) -> str:
    """Install `package` and return the last thing that apt complained about."""
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text(_NO_SERVICES)
        _POLICY.chmod(0o755)
    try:
        return _apt(apt, "install", "--no-install-recommends", "--yes", package) and (
            _apt(apt, "update") or _apt(apt, "install", "--no-install-recommends", "--yes", package)
        )
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


def _apt(apt: str, *arguments: str) -> str:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["--quiet", "--option", f"DPkg::Lock::Timeout={_LOCK_WAIT_S}"]
    result = subprocess.run([apt, *options, *arguments], env=env, capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("E:")]
    return "" if result.returncode == 0 else (lines[-1] if lines else f"apt-get ended with {result.returncode}")
