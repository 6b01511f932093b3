"""Refuses bodies that are larger than any request of ours, before they fill the memory.

FastAPI's own `max_body_size` answers a chunked body in plain text; here every error has the one shape.
"""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api import errors

BODY_BYTES = 512 * 1024
"""Largest body; a 32 KB message may be six times as long in JSON escapes."""


class BodyLimit:
    """ASGI middleware; answers 413 and reads no further."""

    def __init__(self, app: ASGIApp) -> None:
        """Guard `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while its body stays within the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > BODY_BYTES:
            await self._refuse(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_BYTES:
                # The one exception that FastAPI lets through while it reads a body; the error handlers give it its shape.
                raise HTTPException(413, errors.MessageTooLarge().message)
            return message

        await self._app(scope, counted, send)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await errors.response(413, errors.shape_of(errors.MessageTooLarge()))(scope, receive, send)
