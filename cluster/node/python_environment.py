"""The Python environment of an installed node: a virtual environment with exactly what `requirements.lock` names."""

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

from cluster.failures import LifecycleError

FOLDER = ".venv"
_STAMP = "installed"


def up_to_date(prefix: Path) -> bool:
    """Tell whether the environment of `prefix` holds what is wanted there."""
    stamp = prefix / FOLDER / _STAMP
    return stamp.is_file() and stamp.read_text() == _digest(prefix)


def make(prefix: Path) -> None:
    """Make the environment in `prefix`, or renew it, for the project that lies there; takes minutes the first time.

    Raises:
        LifecycleError: Python or pip cannot: says what they say.
    """
    python = prefix / FOLDER / "bin" / "python"
    if not python.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        advice = f"on Debian: sudo apt-get install python{version}-venv"
        _run([sys.executable, "-m", "venv", "--clear", str(prefix / FOLDER)], prefix, advice)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    advice = "see whether this machine reaches its package index"
    _run([*pip, "--require-hashes", "--requirement", "requirements.lock"], prefix, advice)
    _run([*pip, "--no-deps", "--no-build-isolation", "--editable", "."], prefix, advice)
    stamp(prefix)


def compile_code(prefix: Path) -> None:
    """Compile the project's code, as whom a node runs as may not write beside it."""
    python = prefix / FOLDER / "bin" / "python"
    _run([str(python), "-m", "compileall", "-q", "serve_app", "deployments", "cluster"], prefix, "see what is wrong there")


def stamp(prefix: Path) -> None:
    """Note that the environment of `prefix` holds what is wanted there now."""
    (prefix / FOLDER / _STAMP).write_text(_digest(prefix))


def _digest(prefix: Path) -> str:
    digest = hashlib.sha256(platform.python_version().encode())
    for name in ("requirements.lock", "pyproject.toml"):
        digest.update((prefix / name).read_bytes())
    return digest.hexdigest()


def _run(command: list[str], folder: Path, advice: str) -> None:
    result = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or [f"exit code {result.returncode}"]
        what = " ".join(command[1:4])
        raise LifecycleError(f"python {what} failed in {folder} ({errors[-1].removeprefix('ERROR: ')}): {advice}.")
