"""The engines: one file each, each with its own configuration. They know nothing of Redis, turns or wires.

To add an engine: write its file, add its configuration to `EngineConfig`, and its line to `make_engine`. What an engine needs
beyond the standard library and pydantic is imported inside its `start`, so that every process can import this package.
"""

from typing import TypeAlias

from serve_app.chat.engine import Engine
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine

EngineConfig: TypeAlias = ScriptedConfig
"""The configuration of any engine, told apart by `kind`.

pydantic refuses a discriminator over a single member, so the union is written out when the second engine arrives:
`Annotated[ScriptedConfig | OllamaConfig, Field(discriminator="kind")]`.
"""


def make_engine(config: EngineConfig) -> Engine:
    """Return the engine that `config` describes, not yet started. Does no I/O."""
    match config:
        case ScriptedConfig():
            return ScriptedEngine(config)


__all__ = ["EngineConfig", "ScriptedConfig", "ScriptedEngine", "make_engine"]
