"""The port of the engines: a prompt in, text out, nothing else.

An engine knows nothing of Redis, turns or wires. It raises `EngineError`s and nothing else; closing the generator stops
the work behind it. Order, joined text, early close and continuation are promises that `tests/contracts` checks for
every engine.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from serve_app.chat.events import Usage
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personality


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is, as data. `language_model` is false for the scripted engine, which only pretends.

    `hangs_alone`: what computes its replies is its replica's own, so that one which gets no answer says nothing of the pool's
    others. Where replicas share a server they hang together.
    """

    kind: str
    model: str
    language_model: bool
    continues_by: str = "text"
    hangs_alone: bool = False


@dataclass(frozen=True)
class EngineStatus:
    """How an engine is now, as its replica tells the routers and `aurora-cli status`.

    `models` are those that it holds ready in memory, `busy` how many replies it is at, `slots` how many it can be at before one
    waits for another (0: any number), `note` what it is doing for people, like "pulling llama3.2: 43 %"; empty when there is
    nothing to tell.
    """

    models: tuple[str, ...] = ()
    busy: int = 0
    slots: int = 0
    note: str = ""


@dataclass(frozen=True)
class PromptMessage:
    """One message as an engine sees it."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """What an engine answers: the personality and the conversation so far, the user's message last.

    `model` is the one that the personality's plan names, for an engine that has several; empty: the engine's own.
    """

    personality: Personality
    messages: tuple[PromptMessage, ...]
    model: str = ""


@dataclass(frozen=True)
class EnginePiece:
    """A stretch of text; with the token ids behind it where the engine has them; the last one may carry the usage."""

    text: str
    token_ids: tuple[int, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True)
class Prefix:
    """What was already said in this turn, by earlier attempts: the engine goes on right after it (law 5)."""

    text: str = ""
    token_ids: tuple[int, ...] = field(default=())


class Engine(Protocol):
    """Turns a prompt into text."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is. Cheap, always available, also before `start`."""
        ...

    @property
    def status(self) -> EngineStatus:
        """How this engine is now. Cheap, always available, also during `start`."""
        ...

    async def start(self) -> None:
        """Make ready to generate.

        Raises:
            EngineUnavailable: what it needs is not there; the message says what to do.
        """
        ...

    def generate(self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str) -> AsyncGenerator[EnginePiece, None]:
        """Yield the reply after `continue_from`, in order; the joined text is the reply. `run` is unique per attempt.

        Closing the generator stops the work behind it.

        Raises:
            EngineUnavailable: from the iteration: what it needs is gone; another replica may go on.
            ContinuationRefused: it cannot go on from `continue_from`; an engine of another pool may.
            EngineError: the same, whatever else is wrong. What was yielded before stands.
        """
        ...

    async def check(self) -> None:
        """Return if the engine can generate now.

        Raises:
            EngineUnavailable: it cannot.
        """
        ...

    async def close(self) -> None:
        """Release everything. Safe to call twice, and without `start`."""
        ...
