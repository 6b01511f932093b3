"""The one table from error to HTTP status and WebSocket close code, and the one shape in which errors are shown.

Close codes: 4000-4499 say "connect again", 4500-4999 "do not" (after centrifugal/centrifuge's `disconnect.go`). Most
errors on a WebSocket are frames; the connection lives.
"""

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serve_app.chat import errors
from serve_app.chat.errors import ChatError

log = logging.getLogger(__name__)


class MessageTooLarge(errors.InvalidRequest):
    """The request is larger than a message may be (32 KB); nothing was stored. Send less text."""

    code = "message_too_large"


class TooManyFrames(ChatError):
    """Too many frames in too short a time; this one was dropped. Slow down."""

    code = "too_many_frames"
    retryable = True


class Draining(ChatError):
    """This node is leaving and takes no new work. Go to another one; `GET /` names them."""

    code = "draining"
    retryable = True


class Internal(ChatError):
    """Something went wrong on our side. It was logged; try again."""

    code = "internal"
    retryable = True


TABLE: dict[str, tuple[int, int]] = {
    errors.InvalidRequest.code: (422, 4500),
    errors.OptionRefused.code: (422, 4500),
    MessageTooLarge.code: (413, 4509),
    errors.NotFound.code: (404, 4504),
    errors.ConversationNotFound.code: (404, 4504),
    errors.PersonalityNotFound.code: (404, 4504),
    errors.TurnNotFound.code: (404, 4504),
    errors.IdempotencyMismatch.code: (422, 4500),
    errors.TurnInProgress.code: (409, 4009),
    errors.Overloaded.code: (429, 4013),
    TooManyFrames.code: (429, 4029),
    errors.StoreUnavailable.code: (503, 4003),
    errors.EngineError.code: (502, 4002),
    errors.EngineUnavailable.code: (503, 4003),
    errors.ReplicaLeaving.code: (503, 4012),
    errors.EngineTimeout.code: (504, 4004),
    errors.EngineRejected.code: (422, 4500),
    errors.ModelNotServed.code: (502, 4002),
    errors.ContinuationRefused.code: (502, 4002),
    errors.EmptyReply.code: (502, 4002),
    errors.AttemptsExhausted.code: (503, 4003),
    errors.DeadlineExceeded.code: (504, 4004),
    Draining.code: (503, 4012),
    Internal.code: (500, 4000),
}
"""code → (HTTP status, WebSocket close code)."""

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request", 413: MessageTooLarge.code}
_UNKNOWN = TABLE[errors.EngineError.code]
"""A code of a later version, in the end of a turn that a replica of it ran: in a rolling upgrade."""
_PROBLEMS = 5
"""How many problems of one request are named: an answer must not grow with what was sent."""


def status_of(code: str) -> int:
    """Return the HTTP status of an error code."""
    return TABLE.get(code, _UNKNOWN)[0]


def close_code_of(code: str) -> int:
    """Return the WebSocket close code of an error code."""
    return TABLE.get(code, _UNKNOWN)[1]


def shape(code: str, message: str, *, retryable: bool, turn_id: str = "") -> dict[str, Any]:
    """Return the one error shape; `turn_id` where a turn is concerned."""
    error: dict[str, Any] = {"code": code, "message": message, "retryable": retryable}
    if turn_id:
        error["turn_id"] = turn_id
    return {"error": error}


def shape_of(error: ChatError) -> dict[str, Any]:
    """Return the error shape of `error`."""
    return shape(error.code, error.message, retryable=error.retryable, turn_id=error.turn_id)


def response(
    status: int, body: dict[str, Any], *, retry_after: bool = False, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as a response."""
    headers = {**(headers or {}), **({"Retry-After": "1"} if retry_after else {})}
    return Response(orjson.dumps(body), status_code=status, media_type="application/json", headers=headers)


def say(problems: Any) -> str:
    """Return a validation error as one sentence for each of the first problems, naming the field, never the input."""
    said = []
    for problem in problems[:_PROBLEMS]:
        where = ".".join(str(part)[:64] for part in problem["loc"] if part not in ("body", "query", "path", "header"))
        what = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if problem["type"] == "union_tag_invalid":  # pydantic's own words repeat the input
            where, what = problem["ctx"]["discriminator"].strip("'"), f"Must be one of {problem['ctx']['expected_tags']}"
        said.append(f"{where}: {what}." if where else f"{what}.")
    return " ".join(said)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in the one shape."""

    @app.exception_handler(ChatError)
    async def chat_error(_: Request, error: ChatError) -> Response:
        return response(status_of(error.code), shape_of(error), retry_after=error.retryable)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        problems = error.errors()
        if any(problem["type"] == "message_too_large" for problem in problems):
            return response(413, shape_of(MessageTooLarge()))
        return response(422, shape("invalid_request", say(problems), retryable=False))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = _HTTP_CODES.get(error.status_code, "invalid_request")
        return response(error.status_code, shape(code, str(error.detail), retryable=False), headers=error.headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        log.error("Unhandled error in a request.", exc_info=error)
        return response(500, shape_of(Internal()), retry_after=True)
