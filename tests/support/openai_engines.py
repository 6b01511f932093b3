"""Engines of the stand-in for servers of OpenAI's protocol, for tests: impatient, and closed at their end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from serve_app.engines import OpenAICompatibleConfig, OpenAICompatibleEngine
from tests.support.openai_server import OpenAIServer

MODEL = "qwen2.5-7b"
QUICK = {"connect_s": 1.0, "check_s": 0.5, "first_token_s": 1.0, "silence_s": 0.5}
"""Enough on loopback, and little to wait for where a server hangs."""


def config_of(server: OpenAIServer, **config: Any) -> OpenAICompatibleConfig:
    """Return a configuration for `server`, which goes on as the server does."""
    continuation = "none" if server.continues == "never" else server.continues
    facts = {"base_url": server.url, "model": MODEL, "continuation": continuation, **QUICK, **config}
    return OpenAICompatibleConfig.model_validate(facts)


def engine_of(server: OpenAIServer, **config: Any) -> OpenAICompatibleEngine:
    """Return an engine for `server`, not started."""
    return OpenAICompatibleEngine(config_of(server, **config))


@asynccontextmanager
async def started(server: OpenAIServer, **config: Any) -> AsyncIterator[OpenAICompatibleEngine]:
    """Give an engine for `server`, started; close it in the end."""
    engine = engine_of(server, **config)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()
