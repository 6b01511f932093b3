"""The `ollama` of this machine, for tests: a server of their own, on a port of its own, with the models that are there already.

It makes one reply at a time (OLLAMA_NUM_PARALLEL), so that a reply which was not stopped is noticed by the next one.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

from tests.support.redis_process import free_port

SMALL = 3_000_000_000
"""Bytes of the largest model that is taken without having been named: a CPU still computes such a one in time."""
PULLED = "qwen2.5:0.5b"
"""What is pulled where there is none: 0.4 GB, and its template leaves a trailing assistant message open."""
OF_THE_SERVICE = Path("/usr/share/ollama/.ollama/models")
"""Where Ollama's own installer on Linux has its service keep the models."""


class NoModel(Exception):
    """There is no model to test with; the message says why, and what to do."""


class RealOllama:
    """`ollama serve`, in a session of its own. Use as `with`."""

    def __init__(self, program: str, folder: Path) -> None:
        """Start nothing yet; `folder` is for its log."""
        self._program, self._log = program, folder / "ollama.log"
        self.address = f"127.0.0.1:{free_port()}"
        """As OLLAMA_HOST has it: without a scheme."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def __enter__(self) -> "RealOllama":
        # Without OLLAMA_NOPRUNE it would delete what it thinks nobody needs of models that are not the tests'.
        own = {"OLLAMA_HOST": self.address, "OLLAMA_NUM_PARALLEL": "1", "OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_NOPRUNE": "1"}
        environment = {**_models_folder(), **os.environ, **own}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, "serve"], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_it_answers(30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # what it started for its models
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def freeze(self) -> None:
        """Have it say nothing more, with its connections open."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on, if it was frozen."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _wait_until_it_answers(self, seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/api/version", trust_env=False, timeout=1).is_success:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"`ollama serve` does not answer at {self.address}:\n{self._log.read_text()[-2_000:]}")
            time.sleep(0.05)


def _models_folder() -> dict[str, str]:
    """Return where the models are: nothing said where the user has some, as Ollama looks there by itself; else the service's."""
    if not (Path.home() / ".ollama/models/manifests").is_dir() and os.access(OF_THE_SERVICE / "manifests", os.R_OK):
        return {"OLLAMA_MODELS": str(OF_THE_SERVICE)}
    return {}


async def choose_model(url: str, wanted: str = "") -> str:
    """Return a model to test with: the one that is `wanted`, else the smallest there, if it is small; what lacks is pulled.

    Raises:
        NoModel: it cannot be pulled.
    """
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=httpx.Timeout(60, connect=5)) as http:
        there = (await http.get("/api/tags")).raise_for_status().json()["models"]
        if wanted and wanted in {name for one in there for name in (one["name"], one["name"].removesuffix(":latest"))}:
            return wanted
        small = [one for one in there if one["size"] <= SMALL] if not wanted else []
        for one in sorted(small, key=lambda one: int(one["size"])):
            shown = (await http.post("/api/show", json={"model": one["name"]})).raise_for_status().json()
            if "completion" in shown.get("capabilities", ()):
                return str(one["name"])
        return await _pulled(http, wanted or PULLED)


async def _pulled(http: httpx.AsyncClient, model: str) -> str:
    last: dict[str, object] = {}
    try:
        async with asyncio.timeout(600), http.stream("POST", "/api/pull", json={"model": model}) as lines:
            async for line in lines.aiter_lines():
                last = json.loads(line)
    except (httpx.HTTPError, TimeoutError, ValueError) as error:
        last = {"error": type(error).__name__}
    if last.get("status") != "success":
        raise NoModel(
            f"the `ollama` of this machine has no small model that can chat, and {model} could not be pulled "
            f"({last.get('error')}): name one that it has in AURORA_TEST_OLLAMA_MODEL, or its folder in OLLAMA_MODELS"
        )
    return model
