"""A whole Aurora in a folder of its own, ended to the last process and file whatever a test does."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import run_record
from cluster.ports import InternalPorts
from cluster.processes import belonging_to
from cluster.run_record import RunRecord
from cluster.settings import PROJECT_ROOT, Settings

NO_OLLAMA = "127.0.0.1:9"
"""Where nothing answers: tests are not to depend on an Ollama that the machine may have."""


class Home:
    """The command line at work on one home folder."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self._adopted: list[subprocess.Popen[bytes]] = []
        ports = InternalPorts()
        own = {"port": ports.take(), "dashboard_port": ports.take(), "ollama_url": NO_OLLAMA}
        self.settings = Settings(home=home, **{**own, **settings})

    @property
    def url(self) -> str:
        return self.settings.local_url

    @property
    def record(self) -> RunRecord:
        record = run_record.load(self.settings.home)
        assert record is not None, "nothing runs here"
        return record

    @property
    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("AURORA_", "RAY_"))}
        own = self.settings.model_dump(mode="json")
        return env | {f"AURORA_{name.upper()}": str(value) for name, value in own.items()} | {"COLUMNS": "60"}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cluster", *arguments]
        return subprocess.Popen(
            command, env=self.environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def up(self, *arguments: str) -> str:
        result = self.run("up", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def processes(self) -> list[psutil.Process]:
        record = run_record.load(self.settings.home)
        return belonging_to(self.settings.home, record.sessions if record else ())

    def adopt(self, process: "subprocess.Popen[bytes]") -> None:
        """End `process`, which a test started in place of one of ours, together with this Aurora."""
        self._adopted.append(process)

    def close(self) -> None:
        self.run("down")
        for adopted in self._adopted:
            adopted.kill()
            adopted.wait(10)
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.settings.ray_folder, ignore_errors=True)


@contextmanager
def new_home(**settings: Any) -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="aurora-test-") as folder:
        home = Home(Path(folder) / "home", **settings)
        try:
            yield home
        finally:
            home.close()


@pytest.fixture
def home() -> Iterator[Home]:
    """An Aurora that is not up."""
    with new_home() as home:
        yield home


@pytest.fixture(scope="module")
def running() -> Iterator[Home]:
    """An Aurora that is up, shared by the tests that leave it so."""
    with new_home() as home:
        home.up()
        yield home
