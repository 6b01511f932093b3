"""What the tests of the engine `vllm` do with engines, and ask vLLM about them."""

from pathlib import Path
from typing import Any, TypeVar

import psutil
from vllm.v1.metrics.loggers import LoggingStatLogger

from serve_app.chat.engine import Engine, Prefix, Prompt, PromptMessage
from serve_app.chat.errors import EngineUnavailable
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.engines import VllmConfig, VllmEngine
from serve_app.engines.vllm_processes import OWNER
from tests.support.stack import personalities
from tests.vllm.tiny_model import WINDOW

BYTES, CHARACTERS = "tiny-bytes", "tiny-characters"
SLOTS = 8
COLD = Options(max_tokens=64, temperature=0, seed=7)
LONG = Options(max_tokens=400, temperature=0)


def config(folder: Path, **settings: Any) -> VllmConfig:
    """Return the configuration of a tiny model for a CPU."""
    small = {"kv_cache_memory_bytes": 64 << 20, "disable_log_stats": False}
    settings = {"dtype": "float32", "max_model_len": WINDOW, "max_num_seqs": SLOTS, "enforce_eager": True} | settings
    return VllmConfig(model=str(folder), served_model_name=folder.name.rstrip("0123456789"), engine_args=small, **settings)


E = TypeVar("E", bound=Engine)


async def ready(engine: E) -> E:
    """Return `engine`, started again if a test has ended it or its process."""
    try:
        await engine.check()
    except EngineUnavailable:
        await engine.close()
        await engine.start()
    return engine


def ask(*texts: str, system: str = "Be short.") -> Prompt:
    """Return a prompt: the user and the assistant in turns, the user first."""
    who = personalities().get("robbie").model_copy(update={"system": system})
    speakers = (Role.USER, Role.ASSISTANT)
    return Prompt(who, tuple(PromptMessage(speakers[at % 2], text) for at, text in enumerate(texts)))


def engine_processes() -> list[psutil.Process]:
    """Return the processes of engines below this one, by the mark in their environment."""
    return [process for process in psutil.Process().children(recursive=True) if _marked(process)]


def _marked(process: psutil.Process) -> bool:
    try:
        return OWNER in process.environ()
    except psutil.Error:
        return False


async def others(engine: VllmEngine) -> int:
    """Return how many replies vLLM's scheduler is at besides a new one, as it says itself with each token of that."""
    assert engine._model is not None
    [stats] = [
        logger
        for adapter in engine._model._llm.logger_manager.stat_loggers
        for logger in getattr(adapter, "per_engine_stat_loggers", {}).values()
        if isinstance(logger, LoggingStatLogger)
    ]
    running = 0
    async for piece in engine.generate(ask("Hello"), Options(max_tokens=16, temperature=0), Prefix(), run="others"):
        if piece.text:
            running = max(running, stats.last_scheduler_stats.num_running_reqs)
    return running - 1
