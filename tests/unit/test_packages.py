"""Programs of the operating system: found, or asked for in one line by who may not install them."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.packages import ensure, find
from cluster.settings import PROJECT_ROOT


def program(folder: Path, name: str) -> Path:
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_a_program_is_found_in_the_systems_folders_first_and_then_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "sh")
    own = program(tmp_path, "aurora-test-program")
    monkeypatch.setenv("PATH", str(tmp_path))
    shell = find("sh")
    assert shell is not None
    assert Path(shell).parent != tmp_path
    assert find("aurora-test-program") == ensure("aurora-test-program") == str(own)
    monkeypatch.setenv("PATH", "")
    assert find("aurora-test-program") is None


def test_what_python_packages_bring_along_is_no_program_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(scripts))
    assert (scripts / "ray").exists()
    assert find("ray") is None


def test_who_may_not_install_is_told_which_package_is_missing() -> None:
    code = (
        "import os; from cluster.packages import ensure; from cluster.failures import LifecycleError\n"
        "os.geteuid() or os.setuid(65534)\n"
        "try: ensure('aurora-no-such-program')\n"
        "except LifecycleError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    [line] = result.stdout.splitlines()
    assert "aurora-no-such-program is not on this machine" in line
    assert "sudo apt-get install aurora-no-such-program" in line
