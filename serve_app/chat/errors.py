"""What can go wrong, as values that cross a process boundary and reach a client unchanged.

::

    ChatError                    code                   retryable
    ├─ InvalidRequest            invalid_request        no
    │  └─ OptionRefused          option_refused         no
    ├─ NotFound                  not_found              no
    │  ├─ ConversationNotFound   no_conversation        no
    │  ├─ PersonalityNotFound    no_personality         no
    │  └─ TurnNotFound           no_turn                no
    ├─ IdempotencyMismatch       idempotency_mismatch   no
    ├─ TurnInProgress            turn_in_progress       yes
    ├─ Overloaded                overloaded             yes
    ├─ StoreUnavailable          store_unavailable      yes
    ├─ EngineError               engine_error           yes
    │  ├─ EngineUnavailable      engine_unavailable     yes
    │  │  └─ ReplicaLeaving      replica_leaving        yes
    │  ├─ EngineTimeout          engine_timeout         yes
    │  ├─ EngineRejected         engine_rejected        no
    │  ├─ ModelNotServed         model_not_served       yes
    │  ├─ ContinuationRefused    continuation_refused   yes
    │  └─ EmptyReply             empty_reply            yes
    ├─ AttemptsExhausted         attempts_exhausted     yes
    └─ DeadlineExceeded          deadline_exceeded      yes

HTTP statuses and WebSocket close codes belong to `serve_app.api.errors`. Every class can be pickled, because an error
may be raised in one replica and handled in another: the message is the one positional argument.
"""

from typing import ClassVar


class ChatError(Exception):
    """Something the chat says no to, or could not do. The docstring is the message where none is given."""

    code: ClassVar[str] = "chat_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, turn_id: str = "") -> None:
        """Keep `message` for people and, where one turn is concerned, its `turn_id`."""
        super().__init__(message or (self.__doc__ or "").split("\n", 1)[0])
        self.message: str = str(self.args[0])
        self.turn_id = turn_id

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by message and facts, so that a subclass never needs a special constructor."""
        return _rebuild, (type(self), self.message, self.turn_id)


def _rebuild(cls: type[ChatError], message: str, turn_id: str) -> ChatError:
    return cls(message, turn_id=turn_id)


class InvalidRequest(ChatError):
    """The request is not well formed; nothing was stored. Correct it and send it again."""

    code = "invalid_request"


class OptionRefused(InvalidRequest):
    """An option is not allowed here, or is out of its bounds; nothing was stored."""

    code = "option_refused"


class NotFound(ChatError):
    """There is nothing here by that name."""

    code = "not_found"


class ConversationNotFound(NotFound):
    """No such conversation of this client. Leave out conversation_id to start one."""

    code = "no_conversation"


class PersonalityNotFound(NotFound):
    """No such personality. GET /api/personalities lists those there are."""

    code = "no_personality"


class TurnNotFound(NotFound):
    """No such turn: it never began, or it ended more than 26 hours ago."""

    code = "no_turn"


class IdempotencyMismatch(ChatError):
    """This idempotency key was used with another message. Use a new key for a new message."""

    code = "idempotency_mismatch"


class TurnInProgress(ChatError):
    """This conversation is still being answered. Wait for the end of its turn, or stop it."""

    code = "turn_in_progress"
    retryable = True


class Overloaded(ChatError):
    """Too many turns are open; nothing was stored. Try again shortly."""

    code = "overloaded"
    retryable = True


class StoreUnavailable(ChatError):
    """The store did not answer in time. Send again with the same idempotency key: it is answered once."""

    code = "store_unavailable"
    retryable = True


class EngineError(ChatError):
    """The engine failed while answering."""

    code = "engine_error"
    retryable = True


class EngineUnavailable(EngineError):
    """No engine could be reached."""

    code = "engine_unavailable"


class ReplicaLeaving(EngineUnavailable):
    """The node of this engine is leaving; another one goes on."""

    code = "replica_leaving"


class EngineTimeout(EngineError):
    """The engine produced nothing for too long."""

    code = "engine_timeout"


class EngineRejected(EngineError):
    """The engine cannot answer this prompt with these options."""

    code = "engine_rejected"
    retryable = False


class ModelNotServed(EngineError):
    """The pool does not have the model that the personality names for it."""

    code = "model_not_served"


class ContinuationRefused(EngineError):
    """The engine cannot go on from what was already said. What was said is kept; send the message again for a new answer."""

    code = "continuation_refused"


class EmptyReply(EngineError):
    """The engine ended without saying anything."""

    code = "empty_reply"


class AttemptsExhausted(ChatError):
    """Three attempts in a row ended without a new piece."""

    code = "attempts_exhausted"
    retryable = True


class DeadlineExceeded(ChatError):
    """The answer took longer than a turn may take."""

    code = "deadline_exceeded"
    retryable = True
