"""What travels over REST and WebSocket: the mission's fields to the letter, and ours beside them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from serve_app.chat.events import Receipt, Usage
from serve_app.chat.ids import CLIENT_ID, CONVERSATION_ID, IDEMPOTENCY_KEY, PERSONALITY_NAME, TURN_ID
from serve_app.chat.messages import Message
from serve_app.chat.options import Options
from serve_app.chat.replicas import ReplicaRecord

MESSAGE_BYTES = 32 * 1024
"""Largest message, in bytes of UTF-8."""

TURN_EXAMPLE = "turn_01hx5w8k3m2n4p6q7r9s0tavbc"
CONVERSATION_EXAMPLE = "conv_user_123_1696608000"
_TIME_EXAMPLE = "2025-10-06T12:00:01Z"


def _message(value: str) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "must be valid Unicode (it holds half of a surrogate pair)") from None
    if size > MESSAGE_BYTES:
        raise PydanticCustomError("message_too_large", "may have at most 32 KB")
    if not value.strip():
        raise PydanticCustomError("empty", "must not be empty")
    return value


ClientId = Annotated[
    str, Field(pattern=CLIENT_ID, description="Who is asking: up to 64 of A-Z a-z 0-9 _ . @ -.", examples=["user_123"])
]
PersonalityName = Annotated[
    str | None,
    Field(
        pattern=PERSONALITY_NAME,
        description="Who shall answer; default: the conversation's, else the first.",
        examples=["robbie"],
    ),
]
ConversationId = Annotated[
    str | None,
    Field(
        pattern=CONVERSATION_ID,
        description="The conversation to go on with; default: the session's current one with this personality, else a new one.",
        examples=[CONVERSATION_EXAMPLE],
    ),
]
MessageText = Annotated[
    str, AfterValidator(_message), Field(description="What to answer; up to 32 KB of UTF-8.", examples=["Hello Robbie!"])
]
MessageId = Annotated[
    str | None,
    Field(pattern=IDEMPOTENCY_KEY, description="Idempotency key: sent again, it is answered once.", examples=["m-0001"]),
]
TurnId = Annotated[str, Field(pattern=TURN_ID, description="A turn.", examples=[TURN_EXAMPLE])]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


class ChatRequest(_Wire):
    """A message to answer."""

    message: MessageText
    client_id: ClientId
    personality: PersonalityName = None
    conversation_id: ConversationId = None
    stream: bool = Field(False, description="Answer with server-sent events instead of one JSON object.", examples=[False])
    options: Options | None = Field(None, description="What to ask of the engine.", examples=[{"max_tokens": 200}])


class ChatResponse(_Wire):
    """The whole answer."""

    response: str = Field(description="The reply, as stored.", examples=["Hi! I'm Robbie…"])
    conversation_id: str = Field(description="The conversation it belongs to.", examples=[CONVERSATION_EXAMPLE])
    node: str = Field(description="The node that served the request.", examples=["aurora"])
    personality: str = Field(description="Who answered.", examples=["robbie"])
    timestamp: str = Field(description="When the reply was stored, UTC.", examples=[_TIME_EXAMPLE])
    turn_id: str = Field(description="The turn.", examples=[TURN_EXAMPLE])
    status: str = Field(description="`done`, or `stopped` where somebody stopped it.", examples=["done"])
    generated_on: str = Field(description="The node that made the text.", examples=["star"])
    pool: str = Field(description="The pool that made its end.", examples=["scripted"])
    model: str = Field(description="The model that made its end.", examples=["scripted-1"])
    attempt: int = Field(description="Which attempt ended the turn; 1 unless something died.", examples=[1])
    receipt: Receipt = Field(description="Proof of wholeness.", examples=[{"pieces": 12, "sha256": "2cf2…"}])
    usage: Usage | None = Field(
        None, description="What it cost, in the engine's tokens.", examples=[{"prompt_tokens": 42, "completion_tokens": 20}]
    )


class SessionRequest(_Wire):
    """A client that announces itself."""

    client_id: ClientId


class SessionView(_Wire):
    """A client's presence."""

    client_id: str = Field(description="The client.", examples=["user_123"])
    node: str = Field(description="The node it was last seen at.", examples=["aurora"])
    connected_at: str = Field(description="When it last connected, UTC.", examples=[_TIME_EXAMPLE])
    status: str = Field(description="Always `active`: a session that is over is not listed.", examples=["active"])
    user_id: str = Field(description="The user behind the client.", examples=["user_123"])
    created_at: str = Field(description="When the session began, UTC.", examples=[_TIME_EXAMPLE])
    conversations: dict[str, str] = Field(
        description="The current conversation with each personality.", examples=[{"robbie": CONVERSATION_EXAMPLE}]
    )


class SessionList(_Wire):
    """Who is here."""

    sessions: list[SessionView] = Field(description="Live sessions, latest activity first.", examples=[[]])
    total: int = Field(description="How many there are in all.", examples=[2])
    node: str = Field(description="The node that served the request.", examples=["aurora"])


class HistoryResponse(_Wire):
    """A page of a conversation."""

    conversation_id: str = Field(description="The conversation.", examples=[CONVERSATION_EXAMPLE])
    messages: list[Message] = Field(description="Its messages, oldest first.", examples=[[]])
    count: int = Field(description="How many are in this page.", examples=[2])
    node: str = Field(description="The node that served the request.", examples=["aurora"])
    total: int = Field(description="How many the conversation has.", examples=[2])
    before: int | None = Field(
        None, description="Pass this as `before` for the page before; absent at the beginning.", examples=[41]
    )


class NewConversation(_Wire):
    """A conversation to start."""

    client_id: ClientId
    personality: PersonalityName = None
    title: Annotated[
        str, Field(max_length=120, description="Its title; default: the first words of its first message.", examples=["Plans"])
    ] = ""


class ConversationView(_Wire):
    """A conversation, as a list shows it."""

    conversation_id: str = Field(description="Its id.", examples=[CONVERSATION_EXAMPLE])
    client_id: str = Field(description="Whose it is.", examples=["user_123"])
    personality: str = Field(description="With whom.", examples=["robbie"])
    title: str = Field(description="Its title.", examples=["Hello Robbie!"])
    created: str = Field(description="When it began, UTC.", examples=[_TIME_EXAMPLE])
    updated: str = Field(description="When it last changed, UTC.", examples=[_TIME_EXAMPLE])
    messages: int = Field(description="How many messages it has.", examples=[2])


class ConversationList(_Wire):
    """A client's conversations."""

    conversations: list[ConversationView] = Field(description="Last used first.", examples=[[]])
    count: int = Field(description="How many are in this page.", examples=[1])
    total: int = Field(description="How many there are in all.", examples=[1])
    node: str = Field(description="The node that served the request.", examples=["aurora"])


class PersonalityView(_Wire):
    """Somebody to talk to."""

    name: str = Field(description="The name on the wire.", examples=["robbie"])
    display_name: str = Field(description="The name for people.", examples=["Robbie"])
    description: str = Field(description="Who this is.", examples=["Warm and practical."])
    version: str = Field(description="Changes whenever anything about them changes.", examples=["0f3c9a1b2d4e"])
    pools: list[str] = Field(description="The pools that may speak for them, first choice first.", examples=[["scripted"]])


class PersonalityList(_Wire):
    """Everybody there is to talk to."""

    personalities: list[PersonalityView] = Field(description="In the order of their files.", examples=[[]])
    default: str = Field(description="Who answers where a request names nobody.", examples=["robbie"])
    node: str = Field(description="The node that served the request.", examples=["aurora"])


class TurnView(_Wire):
    """A turn as it stands."""

    turn_id: str = Field(description="The turn.", examples=[TURN_EXAMPLE])
    state: str = Field(description="`open`, `done`, `failed` or `stopped`.", examples=["done"])
    conversation_id: str = Field(description="Its conversation.", examples=[CONVERSATION_EXAMPLE])
    client_id: str = Field(description="Whose it is.", examples=["user_123"])
    personality: str = Field(description="Who answers.", examples=["robbie"])
    created: str = Field(description="When it began, UTC.", examples=[_TIME_EXAMPLE])
    attempt: int = Field(description="How many attempts it took so far.", examples=[1])
    seq: int = Field(description="The last piece so far.", examples=[12])
    content: str = Field(description="What has been said so far; whole at the end.", examples=["Hi!"])
    end: dict[str, object] | None = Field(None, description="The terminal event, once there is one.", examples=[{"type": "done"}])
    node: str = Field(description="The node that served the request.", examples=["aurora"])


class EngineView(_Wire):
    """An engine in use."""

    pool: str = Field(description="The pool.", examples=["scripted"])
    engine: str = Field(description="The kind of engine.", examples=["scripted"])
    model: str = Field(description="The model.", examples=["scripted-1"])
    language_model: bool = Field(
        description="False where the replies come from a script, not from a language model.", examples=[False]
    )


class NodeView(_Wire):
    """A node of the cluster."""

    node: str = Field(description="Its name.", examples=["star"])
    url: str = Field(description="Where to reach it.", examples=["http://10.0.0.2:8000"])
    status: str = Field(
        description="`serving`, or `draining`: it finishes what it has and wants no new work.", examples=["serving"]
    )


class ServiceInfo(_Wire):
    """What answers here."""

    service: str = Field(description="What this is.", examples=["Aurora chat"])
    version: str = Field(description="Its version.", examples=["0.1.0"])
    node: str = Field(description="The node that served the request.", examples=["aurora"])
    status: str = Field(description="`running`.", examples=["running"])
    engine: str = Field(
        description="The engines in use, in one line for people.", examples=["scripted (a script, not a language model)"]
    )
    engines: list[EngineView] = Field(description="The engines in use.", examples=[[]])
    personalities: list[str] = Field(description="Who there is to talk to.", examples=[["robbie", "allanbot", "kristina"]])
    nodes: list[NodeView] = Field(
        description="The nodes that serve, each as good as this one; empty where there is but one machine.", examples=[[]]
    )
    endpoints: dict[str, str] = Field(description="What can be called.", examples=[{"POST /api/chat": "Send a message"}])
    docs: str = Field(description="Where the API is described.", examples=["/docs"])


class PoolView(_Wire):
    """A pool, and its replicas as they told of themselves within the last seconds."""

    pool: str = Field(description="The pool.", examples=["ollama"])
    engine: str = Field(description="Kind of its engine.", examples=["ollama"])
    model: str = Field(description="Its model, as the configuration names it.", examples=["llama3.2"])
    language_model: bool = Field(description="Whether it is one: false for scripts.", examples=[True])
    replicas: list[ReplicaRecord] = Field(
        description="Its replicas; none, where all sleep or the pool is starting.", examples=[[]]
    )


class PoolList(_Wire):
    """What makes the answers, and how it is."""

    pools: list[PoolView] = Field(description="The pools, in the configuration's order of preference.", examples=[[]])
    node: str = Field(description="The node that served the request.", examples=["aurora"])


class HealthView(_Wire):
    """How this node is."""

    status: str = Field(
        description="`healthy`, or `degraded` while Redis is away: answers pause and then go on.", examples=["healthy"]
    )
    node: str = Field(description="The node.", examples=["aurora"])
    redis: str = Field(description="`ok` or `away`.", examples=["ok"])
    timestamp: str = Field(description="Now, UTC.", examples=[_TIME_EXAMPLE])


class ErrorDetail(_Wire):
    """What went wrong."""

    code: str = Field(description="Stable, for programs.", examples=["turn_in_progress"])
    message: str = Field(
        description="For people: what happened and what to do.", examples=["This conversation is still being answered."]
    )
    retryable: bool = Field(description="Whether the same request may succeed later.", examples=[True])
    turn_id: str | None = Field(None, description="The turn concerned, if any.", examples=[TURN_EXAMPLE])


class ErrorBody(_Wire):
    """The one error shape."""

    error: ErrorDetail = Field(
        description="What went wrong.", examples=[{"code": "no_turn", "message": "No such turn.", "retryable": False}]
    )


class ChatFrame(_Wire):
    """WebSocket: a message to answer."""

    type: Literal["chat"]
    message: MessageText
    personality: PersonalityName = None
    conversation_id: ConversationId = None
    message_id: MessageId = None
    stream: bool = False
    options: Options | None = None


class ResumeFrame(_Wire):
    """WebSocket: go on with a turn after piece `after`."""

    type: Literal["resume"]
    turn_id: TurnId
    after: int = Field(0, ge=0, le=10_000_000)
    attempt: int = Field(0, ge=0, le=1_000)


class StopFrame(_Wire):
    """WebSocket: stop a turn."""

    type: Literal["stop"]
    turn_id: TurnId


class PingFrame(_Wire):
    """WebSocket: are you there?"""

    type: Literal["ping"]


Frame: TypeAdapter[ChatFrame | ResumeFrame | StopFrame | PingFrame] = TypeAdapter(
    Annotated[ChatFrame | ResumeFrame | StopFrame | PingFrame, Field(discriminator="type")]
)
