"""Personalities: who answers, how they speak, and which pools may speak for them.

They come from `configs/personalities/*.yaml`, travel as Serve's `user_config`, and are pinned in a turn at its first
claim, so that a roll-out in the middle of an answer changes nothing in it (law 5).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.chat.errors import PersonalityNotFound
from serve_app.chat.ids import PERSONALITY_NAME
from serve_app.chat.options import PersonalityOptions


class Script(BaseModel):
    """The lines of a personality for the scripted engine. `{name}` is the user's name where known, `{topic}` their words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    greetings: tuple[str, ...] = Field(min_length=1, description="First words to somebody who says hello. May use {name}.")
    reflections: tuple[str, ...] = Field(min_length=1, description="Answers that give the user's words back. Use {topic}.")
    name_learned: tuple[str, ...] = Field(min_length=1, description="When the user has just told their name. Uses {name}.")
    name_known: tuple[str, ...] = Field(min_length=1, description="When asked for the user's name and it is known. Uses {name}.")
    name_unknown: tuple[str, ...] = Field(min_length=1, description="When asked for the user's name and it is not known.")
    what_am_i: tuple[str, ...] = Field(
        min_length=1, description="When asked what it is: says that it is a script, not a language model."
    )
    admissions: tuple[str, ...] = Field(min_length=1, description="Says that it knows nothing about what was asked, and why.")
    farewells: tuple[str, ...] = Field(min_length=1, description="Goodbye. May use {name}.")
    asides: tuple[str, ...] = Field(
        min_length=4, description="Further sentences in character that make an answer worth streaming."
    )
    questions: tuple[str, ...] = Field(min_length=1, description="Questions that keep the conversation going.")


class PoolChoice(BaseModel):
    """A pool that may speak for a personality. In a file just its name, or `{pool: ollama, model: llama3.2}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str = Field(min_length=1, description="Name of the pool.", examples=["ollama"])
    model: str = Field(
        "", description="The model wanted there, where the pool has several; empty: its own.", examples=["llama3.2"]
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"pool": given} if isinstance(given, str) else given


class Personality(BaseModel):
    """Who answers. Frozen: a changed personality is another value with another `version`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=PERSONALITY_NAME, description="The name on the wire.", examples=["robbie"])
    display_name: str = Field(min_length=1, max_length=64, description="The name for people.", examples=["Robbie"])
    description: str = Field(min_length=1, max_length=500, description="Who this is, in a sentence or two.")
    system: str = Field(min_length=1, max_length=16_000, description="The system prompt: who they are and how they speak.")
    pools: tuple[PoolChoice, ...] = Field(
        (), description="The pools that may speak for them, first choice first; none: all of the configuration, in its order."
    )
    options: PersonalityOptions = Field(
        default_factory=lambda: PersonalityOptions.model_construct(),
        description="Defaults where a request asks for nothing, and `context_window`, which no request may ask for.",
    )
    script: Script = Field(description="Their lines for the scripted engine.")

    @model_validator(mode="after")
    def _room_beside_the_system_prompt(self) -> Self:
        """Refuse a window in which every message would be too long.

        Half of it may be the reply's, so the system prompt gets a quarter, at three bytes to a token.
        """
        window, least = self.options.context_window, 4 * (len(self.system.encode()) // 3)
        if window is not None and window < least:
            raise ValueError(
                f"options.context_window: {window} tokens are too few beside this system prompt; give {least} or more"
            )
        return self

    def window_within(self, window: int) -> int:
        """Return how many tokens of prompt and reply together they get where a model has `window`: no more than they want."""
        return min(window, self.options.context_window or window)

    def speaking_through(self, pools: Iterable[str]) -> "Personality":
        """Return this personality, with `pools` as its chain where it names none."""
        return self if self.pools else self.model_copy(update={"pools": tuple(PoolChoice(pool=pool) for pool in pools)})

    def pinned(self) -> "PinnedPersonality":
        """Return this personality as a turn pins it."""
        document = json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True).encode()
        return PinnedPersonality(self.name, hashlib.sha256(document).hexdigest()[:12], document)


@dataclass(frozen=True)
class PinnedPersonality:
    """A personality as one exact version: what travels to a replica and is kept for later attempts (law 5).

    `version` is twelve hexadecimal digits that change with any change of the personality; `document` is its JSON.
    """

    name: str
    version: str
    document: bytes

    def open(self) -> Personality:
        """Return the personality; each version is parsed once per process."""
        return _open(self.document)


@lru_cache(maxsize=256)
def _open(document: bytes) -> Personality:
    return Personality.model_validate_json(document)


class Personalities:
    """The personalities of this deployment, by name."""

    def __init__(self, members: Iterable[Personality], *, default: str = "") -> None:
        """Keep `members`; `default` answers where a request names nobody (the first one, if empty).

        Raises:
            ValueError: no member, two of one name, or a default that is none of them.
        """
        self._members: dict[str, Personality] = {}
        for member in members:
            if member.name in self._members:
                raise ValueError(f"Two personalities are called {member.name!r}; names must differ.")
            self._members[member.name] = member
        self._pinned = {name: member.pinned() for name, member in self._members.items()}
        if not self._members:
            raise ValueError("There is no personality: put at least one YAML file into configs/personalities.")
        self.default = default or next(iter(self._members))
        if self.default not in self._members:
            raise ValueError(f"The default personality {self.default!r} is none of {', '.join(self._members)}.")

    def get(self, name: str) -> Personality:
        """Return the personality of that name.

        Raises:
            PersonalityNotFound: naming those there are.
        """
        try:
            return self._members[name]
        except KeyError:
            known = ", ".join(self._members)
            raise PersonalityNotFound(f"There is no personality {name!r}. There are: {known}.") from None

    def pinned(self, name: str) -> PinnedPersonality:
        """Return the present version of a personality that `get` knows."""
        return self._pinned[name]

    def __iter__(self) -> Iterator[Personality]:
        """Iterate over the personalities in the order of their files."""
        return iter(self._members.values())
