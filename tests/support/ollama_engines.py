"""Engines of the stand-in for Ollama, for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from serve_app.chat.engine import Engine, EnginePiece, Prefix, Prompt, PromptMessage
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.engines import OllamaConfig, OllamaEngine
from tests.support.ollama_server import OllamaServer
from tests.support.stack import personalities

MODEL = "llama3.2"
IMPATIENT = {"check_s": 1.0, "first_line_s": 1.0, "silence_s": 1.0}
"""For servers that hang. For others, the usual patience: a busy machine is no failure."""


def engine_of(server: OllamaServer, **config: Any) -> OllamaEngine:
    """Return an engine for `server`, not started."""
    return OllamaEngine(OllamaConfig(**{"model": MODEL, **config}), url=server.url)


@asynccontextmanager
async def started(server: OllamaServer, **config: Any) -> AsyncIterator[OllamaEngine]:
    """Give an engine for `server`, started; close it in the end."""
    engine = engine_of(server, **config)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


def prompt_of(*messages: str, model: str = "", system: str = "", context_window: int | None = None) -> Prompt:
    """Return a prompt of Robbie's: the user's messages and the answers by turns, the user's last."""
    who = personalities().get("robbie")
    who = who.model_copy(update={"options": who.options.model_copy(update={"context_window": context_window})})
    roles = [Role.USER if at % 2 == 0 else Role.ASSISTANT for at in range(len(messages))]
    said = tuple(PromptMessage(role, text) for role, text in zip(roles, messages, strict=True))
    return Prompt(who.model_copy(update={"system": system}) if system else who, said, model)


async def pieces_of(engine: Engine, prompt: Prompt, options: Options | None = None, said: str = "") -> list[EnginePiece]:
    """Return all the pieces of a reply after `said`."""
    options = options or Options.model_validate({})
    async with asyncio.timeout(20):
        return [piece async for piece in engine.generate(prompt, options, Prefix(said), run="r1")]


async def reply_of(engine: Engine, prompt: Prompt, options: Options | None = None, said: str = "") -> str:
    """Return what an engine says after `said`."""
    return "".join(piece.text for piece in await pieces_of(engine, prompt, options, said))
