"""The ASGI application of an ingress."""

from fastapi import FastAPI, Query, WebSocket
from fastapi_offline import FastAPIOffline

from serve_app import __version__
from serve_app.api import errors
from serve_app.api.about import About
from serve_app.api.access import Access
from serve_app.api.body_limit import BodyLimit
from serve_app.api.in_flight import InFlight
from serve_app.api.rest import routes
from serve_app.api.websocket import Connection
from serve_app.chat.service import ChatService

_DESCRIPTION = """Chat served from every node. **An answer, once asked for, arrives**: whole, once, on every device.

WebSocket: `/ws/{client_id}`. Frames in: `{"type": "chat", "message": …, "personality"?, "conversation_id"?, "message_id"?,
"stream"?, "options"?}`, `{"type": "resume", "turn_id", "after", "attempt"?}`, `{"type": "stop", "turn_id"}`, `{"type": "ping"}`.
Out: one frame per answer with `content` and `node`; with `"stream": true` every event of the turn;
`{"type": "error", "error": …}`; `{"type": "goodbye", …}` before close code 1012: this node is leaving, connect again and
`resume`."""


def build_app(service: ChatService, access: Access, about: About) -> FastAPI:
    """Return the application over `service`. The pages of /docs need no internet."""
    app: FastAPI = FastAPIOffline(title="Aurora chat", version=__version__, description=_DESCRIPTION)
    app.add_middleware(BodyLimit)
    app.add_middleware(InFlight, service=service)
    errors.install(app)
    app.include_router(routes(service, access, about))

    @app.websocket("/ws/{client_id}")
    async def websocket(
        socket: WebSocket, client_id: str, stream: bool = Query(False, description="Every event from the start.")
    ) -> None:
        await Connection(socket, service, access).serve(client_id, stream=stream)

    return app
