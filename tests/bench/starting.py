"""Starts what is measured on one machine, each with a folder and ports of its own, and ends it with an `ExitStack`."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil

from cluster.processes import belonging_to
from cluster.run_record import load
from tests.support.redis_process import RedisProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
Started = tuple[int, str, list[psutil.Process]]
"""The port, the URL of its Redis, and its processes."""


class NotStarted(Exception):
    """A program ended, or does not answer; carries what it said."""


def aurora(stack: ExitStack, home: Path, *arguments: str, ollama_url: str = "") -> Started:
    """Start Aurora as `aurora-cli up` does, with these arguments and the Ollama at `ollama_url`."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("AURORA_")}
    env |= {"AURORA_HOME": str(home), "AURORA_PORT": str(port), "AURORA_DASHBOARD_PORT": str(free_port())}
    if ollama_url:
        env["AURORA_OLLAMA_URL"] = ollama_url
    command = [sys.executable, "-m", "cluster"]
    stack.callback(subprocess.run, [*command, "down"], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    done = subprocess.run([*command, "up", *arguments], env=env, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NotStarted(f"Aurora did not start:\n{done.stdout}{done.stderr}")
    record = load(home)
    assert record is not None
    return port, record.redis_url, belonging_to(home, record.sessions)


def one_process(stack: ExitStack, folder: Path, *ollama_url: str) -> Started:
    """Start the seed's own idea and its Redis; with the URL of an Ollama, it is that which speaks."""
    folder.mkdir()
    server = RedisProcess(folder)
    stack.callback(server.close)
    server.start()
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.baseline", str(port), server.url, *ollama_url]
    process = program(stack, command, f"http://127.0.0.1:{port}/docs", log=folder / "one-process.log")
    return port, server.url, [process, psutil.Process(server.pid)]


def program(
    stack: ExitStack, command: Sequence[str], url: str, *, log: Path, env: Mapping[str, str] | None = None, within_s: float = 30
) -> psutil.Process:
    """Start a program that is ready when something answers at `url`.

    Raises:
        NotStarted: it ended, or does not answer within `within_s`.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + within_s
    while True:
        try:
            httpx.get(url, timeout=1, trust_env=False)
            return psutil.Process(process.pid)
        except httpx.HTTPError:
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"does not answer within {within_s:g} s"
                raise NotStarted(f"{command[0]} {what}:\n{log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.1)
