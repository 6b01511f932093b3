"""Counts what an ingress has in hand: a node that leaves waits for it."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.chat.service import ChatService


class InFlight:
    """ASGI middleware; counts requests and connections in `ChatService.in_flight` while they last."""

    def __init__(self, app: ASGIApp, service: ChatService) -> None:
        """Count what `app` serves."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] == "lifespan":  # the one call that lasts as long as the replica
            await self._app(scope, receive, send)
            return
        self._service.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._service.in_flight -= 1
