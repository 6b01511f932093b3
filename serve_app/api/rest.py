"""The REST routes."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel

from serve_app.api import errors, sse, wire
from serve_app.api.about import About
from serve_app.api.access import Access, Caller
from serve_app.chat.conversations import Conversation, Session
from serve_app.chat.errors import InvalidRequest
from serve_app.chat.events import Done, End, Event, Failed, Piece, is_end
from serve_app.chat.ids import IDEMPOTENCY_KEY, is_conversation_id, is_turn_id
from serve_app.chat.meter import RESUMES
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personality
from serve_app.chat.service import Ask, ChatService
from serve_app.chat.turns import Snapshot

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": wire.ErrorBody, "description": "Refused; `code` says why and `message` what to do."},
    "5XX": {"model": wire.ErrorBody, "description": "Failed; `retryable` says whether to try again."},
}
_ClientQuery = Annotated[str, Query(description="Who is asking; then only what is theirs is shown.", examples=["user_123"])]
_Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.", examples=[50])]
_Offset = Annotated[int, Query(ge=0, le=1_000_000, description="How many to skip.", examples=[0])]
_TurnPath = Annotated[str, Path(description="The turn, as the answer to a message names it.", examples=[wire.TURN_EXAMPLE])]
_ConversationPath = Annotated[
    str, Path(description="The conversation, as the answer to a message names it.", examples=[wire.CONVERSATION_EXAMPLE])
]
_IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=IDEMPOTENCY_KEY,
        description="Sent again with the same key, a request is carried out once.",
        examples=["m-0001"],
    ),
]
_PIECE = f'{{"type": "piece", "turn_id": "{wire.TURN_EXAMPLE}", "seq": 1, "attempt": 1, "text": "Hi! "}}'
_STREAM: dict[str, Any] = {
    "text/event-stream": {"schema": {"type": "string"}, "example": f"id: 1\nevent: piece\ndata: {_PIECE}\n\n"}
}
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"description": "The events of the turn, its end last.", "content": _STREAM}}
_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"description": 'The answer; with `"stream": true` its events as they come, the end last.', "content": _STREAM}
}


def routes(service: ChatService, access: Access, about: About) -> APIRouter:
    """Return the routes over `service`."""
    router = APIRouter(responses=_ERRORS)

    @router.get("/", tags=["service"], response_model=wire.ServiceInfo, summary="What answers here")
    async def root() -> Response:
        return _json(about.info(service.node, service.personalities))

    @router.get("/health", tags=["service"], response_model=wire.HealthView, summary="How this node is")
    async def health(
        draining: Annotated[
            int, Query(ge=400, le=599, description="The status to answer while this node is draining.", examples=[503])
        ] = 503,
    ) -> Response:
        """200 while this node takes new work. HAProxy wants `draining=404`, or it cuts what a draining node still answers."""
        try:
            return _json(await about.health(service.node))
        except errors.Draining as error:
            return errors.response(draining, errors.shape_of(error), retry_after=True)

    @router.post("/api/chat", tags=["chat"], response_model=wire.ChatResponse, responses=_ANSWERED, summary="Send a message")
    async def chat(request: Request, body: wire.ChatRequest, idempotency_key: _IdempotencyHeader = None) -> Response:
        """Answers whole, or with `"stream": true` as server-sent events. The answer goes on if the caller leaves."""
        caller = await access.caller(request, body.client_id)
        ask = Ask(
            client_id=caller.client_id,
            message=body.message,
            personality=body.personality or "",
            conversation_id=body.conversation_id or "",
            idempotency_key=idempotency_key or "",
            options=body.options or Options.model_construct(),
        )
        if body.stream:
            return await sse.respond(service.ask_in_batches(ask), service.meter, service.departure)
        return _whole(await _end_of(service.ask(ask)))

    @router.get("/api/turns/{turn_id}", tags=["turns"], response_model=wire.TurnView, summary="A turn as it stands")
    async def turn(request: Request, turn_id: _TurnPath, client_id: _ClientQuery = "") -> Response:
        snapshot = await service.turn(_turn_id(turn_id))
        access.check_turn(await access.caller(request, client_id), snapshot.client_id)
        return _json(_turn_view(snapshot, service.node))

    @router.get(
        "/api/turns/{turn_id}/events", tags=["turns"], summary="Follow a turn", responses=_STREAMED, response_class=Response
    )
    async def turn_events(
        request: Request,
        turn_id: _TurnPath,
        client_id: _ClientQuery = "",
        after: Annotated[int, Query(ge=0, le=10_000_000, description="Go on after this piece.", examples=[12])] = 0,
        attempt: Annotated[int, Query(ge=0, le=1_000, description="The attempt that wrote it, if known.", examples=[1])] = 0,
        last_event_id: Annotated[
            str | None, Header(alias="Last-Event-ID", description="The same, as browsers send it.", examples=["12"])
        ] = None,
    ) -> Response:
        """Server-sent events, from any node, during the turn and for ten minutes after; later only the end, whole."""
        snapshot = await service.turn(_turn_id(turn_id))
        access.check_turn(await access.caller(request, client_id), snapshot.client_id)
        position = _position(last_event_id, after)
        service.meter.count(RESUMES, "sse")
        batches = service.follow_in_batches(turn_id, after=position, attempt=attempt)
        return await sse.respond(batches, service.meter, service.departure, after=position)

    @router.delete("/api/turns/{turn_id}", tags=["turns"], response_model=wire.TurnView, summary="Stop a turn")
    async def stop(request: Request, turn_id: _TurnPath, client_id: _ClientQuery = "") -> Response:
        """What was said so far stays. A turn that has ended stays as it ended."""
        snapshot = await service.turn(_turn_id(turn_id))
        access.check_turn(await access.caller(request, client_id), snapshot.client_id)
        return _json(_turn_view(await service.stop(turn_id), service.node))

    @router.get("/api/sessions", tags=["sessions"], response_model=wire.SessionList, summary="List live sessions")
    async def sessions(limit: _Limit = 100, offset: _Offset = 0) -> Response:
        found, total = await service.sessions(limit=limit, offset=offset)
        return _json(wire.SessionList(sessions=[_session_view(s) for s in found], total=total, node=service.node))

    @router.post("/api/sessions", tags=["sessions"], response_model=wire.SessionView, summary="Create or prolong a session")
    async def create_session(request: Request, body: wire.SessionRequest) -> Response:
        caller = await access.caller(request, body.client_id)
        return _json(_session_view(await service.touch_session(caller.client_id, connected=True)))

    @router.get(
        "/api/conversations", tags=["conversations"], response_model=wire.ConversationList, summary="A client's conversations"
    )
    async def conversations(
        request: Request,
        client_id: Annotated[str, Query(description="Whose.", examples=["user_123"])],
        limit: _Limit = 50,
        offset: _Offset = 0,
    ) -> Response:
        caller = await access.caller(request, client_id)
        found, total = await service.conversations(_known(caller), limit=limit, offset=offset)
        views = [_conversation_view(c) for c in found]
        return _json(wire.ConversationList(conversations=views, count=len(views), total=total, node=service.node))

    @router.post(
        "/api/conversations",
        tags=["conversations"],
        response_model=wire.ConversationView,
        status_code=201,
        summary="Start a conversation",
    )
    async def create_conversation(
        request: Request, body: wire.NewConversation, idempotency_key: _IdempotencyHeader = None
    ) -> Response:
        """Sent again with the same key while it is the current one with this personality, it is the same conversation."""
        caller = await access.caller(request, body.client_id)
        made = await service.create_conversation(
            client_id=caller.client_id,
            personality=body.personality or "",
            title=body.title,
            idempotency_key=idempotency_key or "",
        )
        return _json(_conversation_view(made), status=201)

    @router.get(
        "/api/conversations/{conversation_id}/history",
        tags=["conversations"],
        response_model=wire.HistoryResponse,
        summary="Its messages",
    )
    async def history(
        request: Request,
        conversation_id: _ConversationPath,
        limit: _Limit = 50,
        before: Annotated[
            int, Query(ge=0, le=10_000_000, description="Only messages before this seq; 0: the newest.", examples=[41])
        ] = 0,
        client_id: _ClientQuery = "",
    ) -> Response:
        page = await service.history(_conversation_id(conversation_id), limit=limit, before=before)
        access.check_conversation(await access.caller(request, client_id), page.client_id)
        first = page.messages[0].seq if page.messages else None
        return _json(
            wire.HistoryResponse(
                conversation_id=conversation_id,
                messages=list(page.messages),
                count=len(page.messages),
                node=service.node,
                total=page.total,
                before=first if first and first > 1 else None,
            )
        )

    @router.delete(
        "/api/conversations/{conversation_id}", tags=["conversations"], status_code=204, summary="Delete a conversation"
    )
    async def delete_conversation(
        request: Request,
        conversation_id: _ConversationPath,
        client_id: Annotated[str, Query(description="Whose it is.", examples=["user_123"])],
    ) -> Response:
        """Its open turn is stopped first; nothing of it comes back."""
        caller = await access.caller(request, client_id)
        await service.delete_conversation(_conversation_id(conversation_id), client_id=_known(caller))
        return Response(status_code=204)

    @router.get("/api/pools", tags=["service"], response_model=wire.PoolList, summary="What makes the answers, and how it is")
    async def pools() -> Response:
        return _json(await about.pools(service.node))

    @router.get("/api/personalities", tags=["service"], response_model=wire.PersonalityList, summary="Who there is to talk to")
    async def personalities() -> Response:
        views = [_personality_view(p, service.personalities.pinned(p.name).version) for p in service.personalities]
        return _json(wire.PersonalityList(personalities=views, default=service.personalities.default, node=service.node))

    return router


async def _end_of(events: AsyncGenerator[Event, None]) -> End:
    async with aclosing(events):
        async for event in events:
            if is_end(event):
                return event  # type: ignore[return-value]
    raise AssertionError("a turn's events end with its end")


def _whole(end: End) -> Response:
    if isinstance(end, Failed):
        body = errors.shape(end.code, end.message, retryable=end.retryable, turn_id=end.turn_id)
        return errors.response(errors.status_of(end.code), body, retry_after=end.retryable)
    return _json(
        wire.ChatResponse(
            response=end.content,
            conversation_id=end.conversation_id,
            node=end.node,
            personality=end.personality,
            timestamp=end.timestamp,
            turn_id=end.turn_id,
            status=end.type,
            generated_on=end.generated_on,
            pool=end.pool,
            model=end.model,
            attempt=end.attempt,
            receipt=end.receipt,
            usage=end.usage if isinstance(end, Done) else None,
        )
    )


def _json(model: BaseModel, *, status: int = 200) -> Response:
    body = orjson.dumps(model.model_dump(exclude_none=True))
    return Response(body, status_code=status, media_type="application/json")


def _turn_id(value: str) -> str:
    if not is_turn_id(value):
        raise InvalidRequest("turn_id: must look like turn_ and 26 letters and digits, as the answer to a message gives it.")
    return value


def _conversation_id(value: str) -> str:
    if not is_conversation_id(value):
        raise InvalidRequest("conversation_id: must look like conv_{client_id}_{unix time}, as the answer to a message gives it.")
    return value


def _known(caller: Caller) -> str:
    if not caller.client_id:
        raise InvalidRequest("client_id: must not be empty.")
    return caller.client_id


def _position(last_event_id: str | None, after: int) -> int:
    if not last_event_id:
        return after
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 8:
        raise InvalidRequest("Last-Event-ID: must be the number of the last piece.")
    return int(last_event_id)


def _turn_view(turn: Snapshot, node: str) -> wire.TurnView:
    said = turn.reply.content if turn.reply else "".join(e.text for e in turn.events if isinstance(e, Piece))
    return wire.TurnView(
        turn_id=turn.turn_id,
        state=turn.state,
        conversation_id=turn.conversation_id,
        client_id=turn.client_id,
        personality=turn.personality,
        created=turn.created,
        attempt=turn.attempt,
        seq=turn.seq,
        content=said,
        end=turn.end.model_copy(update={"content": said, "recovered": turn.kept}).model_dump() if turn.end else None,
        node=node,
    )


def _session_view(session: Session) -> wire.SessionView:
    return wire.SessionView(
        client_id=session.client_id,
        node=session.node,
        connected_at=session.connected_at,
        status=session.status,
        user_id=session.user_id,
        created_at=session.created_at,
        conversations=session.conversations,
    )


def _conversation_view(conversation: Conversation) -> wire.ConversationView:
    return wire.ConversationView(
        conversation_id=conversation.conversation_id,
        client_id=conversation.client_id,
        personality=conversation.personality,
        title=conversation.title,
        created=conversation.created,
        updated=conversation.updated,
        messages=conversation.messages,
    )


def _personality_view(personality: Personality, version: str) -> wire.PersonalityView:
    return wire.PersonalityView(
        name=personality.name,
        display_name=personality.display_name,
        description=personality.description,
        version=version,
        pools=[choice.pool for choice in personality.pools],
    )
