"""The engines: one file each, each with its own configuration. They know nothing of Redis, turns or wires.

To add an engine: write its file, and name it here: import its two classes, add the configuration to `EngineConfig` and a `case`
to `make_engine` (mypy fails without it), and both to `__all__` (docs/engines.md). What an engine needs beyond the standard
library and pydantic is imported inside its `start`, so that every process can import this package.
"""

from typing import Annotated, TypeAlias

from pydantic import Field

from serve_app.chat.engine import Engine
from serve_app.engines.ollama import OllamaConfig, OllamaEngine
from serve_app.engines.openai_compatible import OpenAICompatibleConfig, OpenAICompatibleEngine
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine
from serve_app.engines.vllm import VllmConfig, VllmEngine

EngineConfig: TypeAlias = Annotated[
    ScriptedConfig | OllamaConfig | VllmConfig | OpenAICompatibleConfig, Field(discriminator="kind")
]
"""The configuration of any engine, told apart by `kind`."""


def make_engine(config: EngineConfig, *, ollama_url: str = "http://127.0.0.1:11434") -> Engine:
    """Return the engine that `config` describes, not yet started. Does no I/O. `ollama_url` is the node's own Ollama server."""
    match config:
        case ScriptedConfig():
            return ScriptedEngine(config)
        case OllamaConfig():
            return OllamaEngine(config, url=ollama_url)
        case VllmConfig():
            return VllmEngine(config)
        case OpenAICompatibleConfig():
            return OpenAICompatibleEngine(config)


__all__ = [
    "EngineConfig",
    "OllamaConfig",
    "OllamaEngine",
    "OpenAICompatibleConfig",
    "OpenAICompatibleEngine",
    "ScriptedConfig",
    "ScriptedEngine",
    "VllmConfig",
    "VllmEngine",
    "make_engine",
]
