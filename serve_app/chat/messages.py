"""Messages and conversations as they are kept and shown."""

from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Role(StrEnum):
    """Who speaks."""

    USER = "user"
    ASSISTANT = "assistant"


class Message(BaseModel):
    """One message of a conversation. `seq` is its place: 1, 2, 3 … without holes while the conversation lives."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role = Field(description="Who speaks.", examples=["user"])
    content: str = Field(description="The text.", examples=["Hello Robbie!"])
    timestamp: str = Field(description="When it was stored, UTC.", examples=["2025-10-06T12:00:00Z"])
    node: str = Field(description="The node whose ingress served it.", examples=["vengeance"])
    client_id: str | None = Field(None, description="Whose conversation it is.", examples=["user_123"])
    personality: str | None = Field(None, description="Who answers.", examples=["robbie"])
    turn_id: str | None = Field(None, description="The turn it belongs to.", examples=["turn_01hx5w8k3m2n4p6q7r9s0tavbc"])
    seq: int | None = Field(None, description="Its place in the conversation, from 1.", examples=[1])
    status: str | None = Field(
        None, description="`stopped` or `failed` where the reply did not reach its end.", examples=["stopped"]
    )
    generated_on: str | None = Field(None, description="The node that made the text.", examples=["star"])
    pool: str | None = Field(None, description="The pool that made its end.", examples=["gpu"])
    model: str | None = Field(None, description="The model that made its end.", examples=["llama3.2"])


def now() -> str:
    """Return the present as it is shown and stored: UTC, seconds, `Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
