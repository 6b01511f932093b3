"""What a WebSocket frame says: an event, an error, and which message somebody means."""

import contextlib
import json

from serve_app.api import errors
from serve_app.chat.errors import ChatError
from serve_app.chat.events import Event, Queued


def of_error(error: ChatError, message_id: str = "") -> dict[str, object]:
    """Return the frame that tells of an error, with the id of the message that it is about, where that has one."""
    frame: dict[str, object] = {"type": "error", **errors.shape_of(error)}
    if message_id:
        frame["message_id"] = message_id
    return frame


def of_event(event: Event) -> dict[str, object]:
    """Return the frame that carries an event."""
    frame = event.model_dump()
    if isinstance(event, Queued):
        frame["estimate_seconds"] = round(event.estimate_seconds, 1)
    return frame


def message_id(text: str | None) -> str:
    """Return the frame's own id, so that its sender can tell which of its messages was refused."""
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(text or "")
        if isinstance(data, dict) and isinstance(data.get("message_id"), str):
            return str(data["message_id"])[:128].encode(errors="replace").decode()
    return ""
