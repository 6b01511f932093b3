"""The one vocabulary of what happens to a turn: in the log, on the bus, in SSE, on WebSockets, in the client library.

Pieces count `seq` = 1, 2, 3 … over the whole turn, across attempts. A turn has exactly one terminal event (law 1), and
it carries a `Receipt`, with which a client proves that it has the whole text and nothing else (law 2).
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

EVENT_VERSION = 1
"""Version of the stored form (`v` in the log). A reader refuses what is newer than it knows."""


class Receipt(BaseModel):
    """How many pieces a reply has, and the SHA-256 of its whole text in UTF-8, in hexadecimal."""

    model_config = ConfigDict(frozen=True)

    pieces: int = Field(description="Number of pieces.", examples=[12])
    sha256: str = Field(
        description="SHA-256 of the whole text, UTF-8, hexadecimal.",
        examples=["2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"],
    )

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Receipt":
        """Return the receipt of a reply made of these pieces."""
        digest, count = hashlib.sha256(), 0
        for text in texts:
            digest.update(text.encode())
            count += 1
        return cls(pieces=count, sha256=digest.hexdigest())


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    turn_id: str


class Accepted(_Event):
    """The user message is kept."""

    type: Literal["accepted"] = "accepted"
    conversation_id: str
    message_seq: int
    personality: str = ""
    content: str = ""
    node: str = ""


class Queued(_Event):
    """The turn waits for a replica. Repeated while it waits."""

    type: Literal["queued"] = "queued"
    place: int
    estimate_seconds: float


class Started(_Event):
    """The first attempt claimed the turn."""

    type: Literal["started"] = "started"
    conversation_id: str
    personality: str
    node: str
    attempt: int
    replica: str = ""
    pool: str = ""
    model: str = ""


class Piece(_Event):
    """A stretch of the reply."""

    type: Literal["piece"] = "piece"
    seq: int
    attempt: int
    text: str


class Takeover(_Event):
    """A later attempt goes on after piece `after_seq`; not counted in seq.

    `reason`: the attempt before was `lost`, its node is leaving (`moved`), its engine failed (`gave_up`), could not answer this
    turn (`unfit`), or said nothing (`silent`).
    """

    type: Literal["takeover"] = "takeover"
    attempt: int
    after_seq: int
    generated_on: str
    reason: str
    replica: str = ""
    pool: str = ""
    model: str = ""


class Rewind(_Event):
    """Drop the pieces beyond `to_seq` (law 10)."""

    type: Literal["rewind"] = "rewind"
    to_seq: int


class Usage(BaseModel):
    """What the reply cost, in the engine's own tokens."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = Field(0, description="Tokens of the prompt.", examples=[42])
    completion_tokens: int = Field(0, description="Tokens of the reply.", examples=[20])


class _End(_Event):
    conversation_id: str = ""
    content: str = ""
    receipt: Receipt
    node: str = ""
    generated_on: str = ""
    personality: str = ""
    pool: str = ""
    model: str = ""
    attempt: int = 0
    timestamp: str = ""
    recovered: bool = True


class Done(_End):
    """The end: the reply is whole and stored. `recovered` is false where the pieces are no longer kept one by one."""

    type: Literal["done"] = "done"
    usage: Usage = Usage()


class Failed(_End):
    """The end: the turn failed. What was said until then is kept with status `failed`."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    retryable: bool


class Stopped(_End):
    """The end: somebody stopped the turn. What was said until then is kept with status `stopped`."""

    type: Literal["stopped"] = "stopped"


End: TypeAlias = Done | Failed | Stopped
Event: TypeAlias = Accepted | Queued | Started | Piece | Takeover | Rewind | Done | Failed | Stopped

_EVENT: TypeAdapter[Event] = TypeAdapter(
    Annotated[Accepted | Queued | Started | Piece | Takeover | Rewind | Done | Failed | Stopped, Field(discriminator="type")]
)
TERMINAL = frozenset({"done", "failed", "stopped"})


def parse_event(data: object) -> Event:
    """Return the event that `data`, a decoded JSON object, describes.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return _EVENT.validate_python(data)


def is_end(event: Event) -> bool:
    """Say whether `event` ends its turn."""
    return event.type in TERMINAL
