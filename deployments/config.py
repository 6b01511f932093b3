"""The arguments of the Serve applications, as `configs/*.yaml` gives them. Frozen, and nothing unknown is let through."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from serve_app.chat.options import OptionLimits
from serve_app.chat.personalities import Personalities, Personality
from serve_app.engines import EngineConfig


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolDescription(_Config):
    """What the chat says about a pool's engine, so that nobody takes a script for a language model."""

    engine: str = Field(description="Kind of engine.")
    model: str = Field(description="Its model.")
    language_model: bool = Field(description="Whether it is one.")


class TurnConfig(_Config):
    """Limits of turns."""

    deadline_s: int = Field(
        900, ge=10, le=3_000, description="Seconds after which a turn ends as failed; below the session's hour."
    )
    max_open_turns: int = Field(
        10_000, ge=1, description="Open turns in the whole cluster; beyond, messages are refused with 429."
    )


class ChatArgs(_Config):
    """Arguments of the chat application: ingress and router."""

    personalities: str = Field(
        "configs/personalities", description="Folder of personality files, used where user_config gives none."
    )
    default_personality: str = Field("robbie", description="Who answers where a request names nobody.")
    pools: dict[str, PoolDescription] = Field(
        min_length=1,
        description="Pool applications by name, and what speaks there. In this order they are tried for a personality that names "
        "no pools of its own.",
    )
    limits: OptionLimits = Field(
        default_factory=lambda: OptionLimits.model_validate({}), description="What requests may ask for."
    )
    turns: TurnConfig = Field(default_factory=lambda: TurnConfig.model_validate({}), description="Limits of turns.")


class RunConfig(_Config):
    """Limits of one run of an engine."""

    first_piece_timeout_s: float = Field(60.0, gt=0, description="Seconds an engine may take to its first piece.")
    piece_timeout_s: float = Field(30.0, gt=0, description="Seconds between two pieces.")
    history_messages: int = Field(60, ge=1, le=500, description="How many of the last messages an engine gets to see.")


class PoolArgs(_Config):
    """Arguments of a pool application."""

    engine: EngineConfig = Field(description="The engine of this pool.")
    run: RunConfig = Field(default_factory=lambda: RunConfig.model_validate({}), description="Limits of one run.")


class UserConfig(_Config):
    """What may change while replicas live: Serve passes it to `reconfigure`."""

    personalities: tuple[Personality, ...] = Field(description="The personalities, in the order of their files.")


def load_personalities(folder: str | Path) -> list[Personality]:
    """Return the personalities in a folder of YAML files, in the order of their names.

    Raises:
        ValueError: a file is not a personality; the message names it and what is wrong.
    """
    found = []
    for path in sorted(Path(folder).glob("*.yaml")):
        try:
            found.append(Personality.model_validate(yaml.safe_load(path.read_text())))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return found


def gather(user_config: object, args: ChatArgs) -> Personalities:
    """Return the personalities that a `user_config` holds, each with the chain of pools that may speak for it.

    Raises:
        ValueError: it holds none, the default one is not among them, or one names a pool that this application does not have.
    """
    members = [member.speaking_through(args.pools) for member in UserConfig.model_validate(user_config).personalities]
    unknown = {choice.pool for member in members for choice in member.pools} - set(args.pools)
    if unknown:
        raise ValueError(f"A personality names pools that this application does not have: {', '.join(sorted(unknown))}.")
    return Personalities(members, default=args.default_personality)
