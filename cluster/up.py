"""Bringing Aurora up on this machine, from nothing to a message that has been answered."""

import importlib.metadata
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster import deploying, ollama, ray_head, redis_server, run_record, serve_config
from cluster.down import stop
from cluster.failures import LifecycleError
from cluster.pool_status import pools_at
from cluster.ports import InternalPorts, holder, is_free
from cluster.processes import MARK, belonging_to, mark_of
from cluster.progress import Progress
from cluster.run_record import RunRecord, Started
from cluster.serve_api import ServeApi
from cluster.settings import PROJECT_ROOT, Settings

_CHECK = {"message": "Hello!", "personality": "robbie", "client_id": "aurora-check"}
_REDIS_PORT = 6379


LOCAL = PROJECT_ROOT / "configs" / "local.yaml"
LOCAL_OLLAMA = PROJECT_ROOT / "configs" / "local-ollama.yaml"


def bring_up(settings: Settings, config: Path | None, *, wait: bool, progress: Progress) -> tuple[RunRecord, bool]:
    """Start Redis, Ray and the applications of `config`; return the record and whether anything had to be started.

    Without a `config`, that of the Ollama of this machine, where one answers and has a model, else that of the scripted engine.

    Whatever ends it early, Ctrl-C too, stops all that it started.

    Raises:
        LifecycleError: says what is wrong and what to do.
    """
    if not sys.platform.startswith("linux"):
        raise LifecycleError("Aurora runs on Linux: use a Linux machine, a virtual one or WSL 2.")
    record = run_record.load(settings.home)
    if record and record.processes_alive and (not record.answered or is_answering(record)):
        if not record.answered and wait:
            _wait_for_applications(settings, record, rendered(record), progress)
            _wait_for_answer(settings, record, progress)
        return record, False
    if record or belonging_to(settings.home):
        with progress.step("Clean up after a run that ended badly"):
            stop(settings)
    if not is_free(settings.port, settings.host):  # before a model is pulled, which takes minutes
        raise LifecycleError(
            f"Port {settings.port} is taken by {holder(settings.port)}: stop that, or choose another with AURORA_PORT=8001."
        )
    config, model = (config, "") if config is not None else choose(settings, progress)
    serve_config.render(config, host=settings.host, port=settings.port)  # what is wrong with it is said before anything starts
    record = _plan(settings, config, model, progress)
    try:
        _start(settings, record, rendered(record), progress)
        if wait:
            _wait_for_applications(settings, record, rendered(record), progress)
            _wait_for_answer(settings, record, progress)
    except BaseException:
        progress.say("Stopping what was started …")
        stop(settings)
        raise
    return record, True


def rendered(record: RunRecord, file: Path | None = None) -> dict[str, Any]:
    """Return what Serve is told in that run: its configuration as the files are now, or another one in its place."""
    return serve_config.render(
        file or record.config, host=record.host, port=record.port, ollama_model=record.ollama_model if file is None else ""
    )


def choose(settings: Settings, progress: Progress) -> tuple[Path, str]:
    """Return the configuration for this machine and the model of its Ollama; says which, and why.

    Raises:
        LifecycleError: the model that is wanted cannot be pulled.
    """
    server = ollama.find(settings.ollama_url)
    if server is None:
        progress.say(f"  No Ollama answers at {settings.ollama_url}: the scripted engine speaks, which is no language model.")
        return LOCAL, ""
    if server.too_old:
        oldest = ".".join(map(str, ollama.OLDEST))
        progress.say(
            f"  Ollama {server.version} answers at {server.url} and is too old: the scripted engine speaks, which is no language "
            f"model. To change that: install {oldest} or newer, then aurora-cli down and up."
        )
        return LOCAL, ""
    model = settings.ollama_model or next(iter(server.models), "")
    if not model:
        progress.say(
            f"  Ollama {server.version} answers at {server.url} and has no model that can chat: the scripted engine speaks. "
            "To change that: ollama pull llama3.2, then aurora-cli down and up (or AURORA_OLLAMA_MODEL=llama3.2, which pulls it)."
        )
        return LOCAL, ""
    progress.say(f"  Ollama {server.version} answers at {server.url}: its model {model} speaks.")
    if not server.has(model):
        with progress.step(f"Ollama pulls {model}") as detail:
            ollama.pull(server, model, detail)
    return LOCAL_OLLAMA, model


def is_answering(record: RunRecord, *, patience: float = 10.0) -> bool:
    """Tell whether the chat API of `record` answers, giving a busy one some time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return httpx.get(f"{record.api_url}/", timeout=5, trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.25)


def serve_api(record: RunRecord) -> ServeApi:
    """Return Serve's API of that run."""
    return ServeApi(record.dashboard_url, record.dashboard_headers)


def deploy(api: ServeApi, config: dict[str, Any], progress: Progress, *, chat: str) -> None:
    """Make a running Serve run `config`, and wait until the chat at the URL `chat` can answer; says which pools are late.

    Raises:
        LifecycleError: Serve refuses it, an application fails, or no pool can answer.
    """
    with progress.step("Hand the configuration to Serve"):
        api.deploy(config)
    _wait(api, config, progress, chat=chat)


def _plan(settings: Settings, config: Path, model: str, progress: Progress) -> RunRecord:
    """Check that this machine is ready, choose the other ports, and write the record of what is about to be started."""
    internal = InternalPorts(settings.port, settings.dashboard_port)
    dashboard_port = settings.dashboard_port
    if not is_free(dashboard_port):
        dashboard_port = internal.take()
        taken = f"Port {settings.dashboard_port} is taken by {holder(settings.dashboard_port)}"
        progress.say(f"  {taken}: the Ray dashboard will be on {dashboard_port}.")
    record = RunRecord(
        run=secrets.token_hex(6),
        started_at=datetime.now(UTC),
        host=settings.host,
        port=settings.port,
        node_name=settings.node_name,
        config=config.absolute(),
        ollama_model=model,
        dashboard_port=dashboard_port,
        redis_url=settings.redis_url,
        ports=ray_head.choose_ports(internal),
        versions={
            "aurora": importlib.metadata.version("aurora") if _installed() else "0",
            "ray": importlib.metadata.version("ray"),
        },
    )
    if settings.redis_url:
        record.redis_version = redis_server.check(settings.redis_url)
    return record


def _start(settings: Settings, record: RunRecord, config: dict[str, Any], progress: Progress) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    if not settings.is_loopback:
        ray_head.ensure_token(settings.home)
        record.token_file = ray_head.token_file(settings.home)
    mark = {MARK: mark_of(settings.home, record.run)}
    record.save(settings.home)
    if not settings.redis_url:
        _start_redis(settings, record, mark, progress)
    log = settings.logs / "ray.log"
    log.unlink(missing_ok=True)
    with progress.step(f"Ray {record.versions['ray']}"):
        env = ray_head.environment(settings, mark=mark, ports=record.ports, redis_url=record.redis_url)
        ray = ray_head.launch(settings, env=env, ports=record.ports, dashboard_port=record.dashboard_port)
        record.ray = _started(ray)
        record.save(settings.home)
        ray_head.wait_until_answers(ray, record.dashboard_url, record.dashboard_headers, log=log)
    with progress.step("Hand the configuration to Serve"):
        serve_api(record).deploy(config)


def _start_redis(settings: Settings, record: RunRecord, mark: Mapping[str, str], progress: Progress) -> None:
    path, version = redis_server.executable()
    log = settings.logs / "redis.log"
    log.unlink(missing_ok=True)
    port = _REDIS_PORT if is_free(_REDIS_PORT) else record.ports["redis"]
    record.redis_url, record.redis_version = f"redis://127.0.0.1:{port}/0", version
    with progress.step(f"Redis {version} on port {port}"):
        redis = redis_server.launch(path, version, data=settings.home / "redis", port=port, env={**os.environ, **mark}, log=log)
        record.redis = _started(redis)
        record.save(settings.home)
        redis_server.wait_until_answers(redis, record.redis_url, log=log)


def _wait_for_applications(settings: Settings, record: RunRecord, config: dict[str, Any], progress: Progress) -> None:
    try:
        _wait(serve_api(record), config, progress, chat=record.api_url)
    except LifecycleError as error:
        error.logs = error.logs or settings.logs / "ray-last" / "serve"
        raise


def _wait(api: ServeApi, config: Mapping[str, Any], progress: Progress, *, chat: str) -> None:
    names = {application.get("name", "default") for application in config["applications"]}
    with progress.step(f"Applications {', '.join(sorted(names))}") as detail:
        late = deploying.wait(api, config, lambda: pools_at(chat), on_change=detail)
    for each in late:
        how = "can answer, and is not all there yet" if each.able else "is not there yet"
        progress.say(f"  – Pool {each.pool} {how}: {each.note}")


def _wait_for_answer(settings: Settings, record: RunRecord, progress: Progress) -> None:
    """Wait until a message has been answered, and take its conversation away again."""
    deadline, last = time.monotonic() + 60, "no answer"
    with progress.step("A first answer") as detail, httpx.Client(base_url=record.api_url, timeout=20, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                response = client.post("/api/chat", json=_CHECK)
                if response.status_code == httpx.codes.OK and response.json().get("response"):
                    conversation = response.json().get("conversation_id")
                    client.delete(f"/api/conversations/{conversation}", params={"client_id": _CHECK["client_id"]})
                    record.answered = True
                    record.save(settings.home)
                    return
                last = f"{response.status_code} {response.text[:200]}".strip()
                if response.is_client_error and response.status_code != httpx.codes.NOT_FOUND:
                    break
            except (httpx.TransportError, ValueError) as error:
                last = str(error) or type(error).__name__
            detail(last)
            time.sleep(0.1)
    raise LifecycleError(f"The chat does not answer a first message: {last}", logs=settings.logs / "ray-last" / "serve")


def _started(process: "subprocess.Popen[bytes]") -> Started:
    return Started(pid=process.pid, at=psutil.Process(process.pid).create_time())


def _installed() -> bool:
    try:
        importlib.metadata.version("aurora")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
