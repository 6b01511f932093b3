"""Engines behind a Serve deployment: the same port, each call through a handle, the real engine in a replica.

In Aurora text never travels through handles. Here it does, so that the contract can be held against an engine where it lives: in
Ray's worker, on the replica's event loop, made from its configuration, with errors that cross a process boundary.
"""

import itertools
import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, EngineStatus, Prefix, Prompt
from serve_app.chat.errors import ChatError
from serve_app.chat.options import Options
from serve_app.engines import EngineConfig, make_engine

with warnings.catch_warnings():  # Ray Serve itself uses what Pydantic has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray
    from ray import serve
    from ray.exceptions import RayTaskError
    from ray.serve.handle import DeploymentHandle

__all__ = ["DeploymentHandle", "ServedEngine", "engine_host"]
PROJECT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": str(PROJECT),
    "RAY_AUTH_MODE": "disabled",  # without it, a Ray of this user's may leave a token file that every later one then asks for
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
}
_numbers = itertools.count(1)


@serve.deployment(max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0})
class EngineHost:
    """Holds engines, each under a number."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}

    async def make(self, number: int, config: EngineConfig) -> None:
        self._engines[number] = make_engine(config)

    async def call(self, number: int, name: str) -> None:
        """Call a method without arguments: `start`, `check` or `close`."""
        await getattr(self._engines[number], name)()

    async def status(self, number: int) -> EngineStatus:
        return self._engines[number].status

    async def generate(
        self, number: int, prompt: Prompt, options: Options, said: Prefix, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        async with aclosing(self._engines[number].generate(prompt, options, said, run=run)) as pieces:
            async for piece in pieces:
                yield piece


class ServedEngine(Engine):
    """An engine in the replica. `status` is as last looked at."""

    def __init__(self, host: DeploymentHandle[Any], config: EngineConfig) -> None:
        self._host, self._config, self._number = host, config, next(_numbers)
        self._made = False
        self._info, self._status = make_engine(config).info, EngineStatus()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def status(self) -> EngineStatus:
        return self._status

    async def look(self) -> EngineStatus:
        """Ask how it is now."""
        self._status = await self._host.status.remote(self._number)
        return self._status

    async def start(self) -> None:
        if not self._made:
            await self._host.make.remote(self._number, self._config)
            self._made = True
        await self._call("start")

    async def check(self) -> None:
        await self._call("check")

    async def close(self) -> None:
        await self._call("close")

    async def _call(self, name: str) -> None:
        with _own_errors():
            await self._host.call.remote(self._number, name)

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        pieces = self._host.options(stream=True).generate.remote(self._number, prompt, options, continue_from, run)
        try:
            with _own_errors():
                async for piece in pieces:
                    yield piece
        finally:
            pieces.cancel()  # a response that nobody reads any more goes on otherwise


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise what the engine raised, as `deployments.handles` does."""
    try:
        yield
    except RayTaskError as failed:
        if isinstance(failed.cause, ChatError):
            raise failed.cause from failed
        raise


@contextmanager
def engine_host() -> Iterator[DeploymentHandle[Any]]:
    """Give the handle of one Serve application in a Ray of its own, of which nothing is left in the end."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    folder = tempfile.mkdtemp(prefix="aurora-")  # short, as it holds sockets
    os.environ.update(ENVIRONMENT)
    try:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 1024 * 1024,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        serve.start(proxy_location="Disabled")
        yield serve.run(EngineHost.bind(), name="engines", route_prefix=None)
    finally:
        serve.shutdown()
        ray.shutdown()
        _, alive = psutil.wait_procs(_of(folder), timeout=10)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
    assert not alive, alive


def _of(folder: str) -> list[psutil.Process]:
    """Return the processes that were started with files in `folder`."""
    return [each for each in psutil.process_iter(["cmdline"]) if any(folder in word for word in each.info["cmdline"] or ())]
