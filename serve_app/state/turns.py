"""Turns in Redis: each method is one script of `lua/`, one round trip."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from serve_app.chat import errors
from serve_app.chat.events import EVENT_VERSION, End, Event, parse_event
from serve_app.chat.messages import Message, Role
from serve_app.chat.options import Options
from serve_app.chat.personalities import PinnedPersonality
from serve_app.chat.turns import (
    Begun,
    Claim,
    Due,
    Failure,
    Held,
    LoggedPiece,
    NewTurn,
    PastMessage,
    Plan,
    RecentTurn,
    Snapshot,
    Swept,
    TurnStore,
    Verdict,
)
from serve_app.state.scripts import Scripts

_ROLES = {role.value: role for role in Role}
_REFUSALS: dict[str, type[errors.ChatError]] = {
    "idempotency_mismatch": errors.IdempotencyMismatch,
    "no_conversation": errors.ConversationNotFound,
    "turn_in_progress": errors.TurnInProgress,
    "overloaded": errors.Overloaded,
}


class RedisTurns(TurnStore):
    """Keeps turns in Redis, shared by every node."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def begin(self, new: NewTurn) -> Begun:
        """See `TurnStore.begin`."""
        message: dict[str, object] = {
            "role": Role.USER, "content": new.content, "timestamp": new.timestamp, "client_id": new.client_id,
            "node": new.node, "turn_id": new.turn_id,
        }  # fmt: skip
        if new.personality:
            message["personality"] = new.personality
        request = {
            "turn_id": new.turn_id, "token": new.token, "client_id": new.client_id, "content": new.content, "node": new.node,
            "timestamp": new.timestamp, "personality": new.personality, "default_personality": new.default_personality,
            "conversation_id": new.conversation_id, "options": _json(new.options.asked()), "message": _json(message),
            "idempotency_key": new.idempotency_key, "body_hash": new.body_hash, "title": new.title, "unix": new.unix,
            "deadline_ms": new.deadline_ms, "max_open_turns": new.max_open_turns, "undelivered": new.undelivered,
        }  # fmt: skip
        how, *rest = _texts(await self._scripts.run("begin", orjson.dumps(request), kept=_is_begun))
        if how == "refused":
            code, detail = rest
            raise _REFUSALS[code](turn_id=detail if code == "turn_in_progress" else "")
        turn_id, conversation_id, seq, personality, warm = rest
        return Begun(turn_id, conversation_id, int(seq), personality, attached=how == "attached", warm=warm)

    async def claim(
        self,
        turn_id: str,
        *,
        dispatch: str,
        run: str,
        node: str,
        plan: Plan,
        window: int,
        replica: str = "",
        engine: str = "",
        model: str = "",
    ) -> Claim | Verdict:
        """See `TurnStore.claim`."""
        personality = plan.personality
        fixed = (
            turn_id,
            dispatch,
            run,
            node,
            window,
            plan.pool,
            personality.name,
            personality.version,
            replica,
            model,
            f"{engine}/{model}",
        )
        reply = await self._scripts.run("claim", *fixed, "")
        if reply[0] == b"describe":
            reply = await self._scripts.run("claim", *fixed, personality.document)
        how = reply[0].decode()
        if how != "ok":
            return Verdict(how)
        attempt, client_id, conversation_id, at, same_model, name, version, options, remaining, count = _texts(reply[1:11])
        if version != personality.version or name != personality.name:
            personality = PinnedPersonality(name, version, reply[11])
        end = 12 + int(count)
        return Claim(
            attempt=int(attempt),
            client_id=client_id,
            conversation_id=conversation_id,
            node=at,
            plan=replace(plan, personality=personality),
            options=Options.model_validate_json(options),
            history=tuple(
                PastMessage(_ROLES[message["role"]], message["content"], message.get("status", ""))
                for message in orjson.loads(b"[%s]" % b",".join(reply[12:end]))
            ),
            pieces=_pieces(reply[end:]),
            remaining_ms=int(remaining),
            same_model=same_model == "1",
        )

    async def append(self, turn_id: str, *, token: str, pieces: Sequence[LoggedPiece]) -> tuple[Verdict, int]:
        """See `TurnStore.append`. Fails at once where Redis is away: the writer has its own rhythm of trying again."""
        reply = await self._scripts.run("append", turn_id, token, pieces[0].seq, *_pairs(turn_id, pieces), patience_s=0)
        return _verdict(reply)

    async def renew(self, held: Sequence[tuple[str, str]], *, queued: dict[str, Event] | None = None) -> set[str]:
        """See `TurnStore.renew`. Tries once: the next second brings the next renewal."""
        if not held:
            return set()
        args: list[str] = []
        for turn_id, token in held:
            event = (queued or {}).get(turn_id)
            args += (turn_id, token, "" if event is None else _json(event.model_dump()))
        return set(_texts(await self._scripts.run("renew", *args, patience_s=0)))

    async def finish(
        self, turn_id: str, *, token: str, end: End, tail: Sequence[LoggedPiece] = (), from_seq: int
    ) -> tuple[Verdict, int]:
        """See `TurnStore.finish`. Fails at once where Redis is away, like `append`."""
        reply_json = ""
        if end.content:
            message: dict[str, object] = {
                "role": Role.ASSISTANT, "content": end.content, "timestamp": end.timestamp, "node": end.node,
                "personality": end.personality, "turn_id": turn_id, "generated_on": end.generated_on,
                "pool": end.pool, "model": end.model,
            }  # fmt: skip
            if end.type != "done":
                message["status"] = end.type
            reply_json = _json(message)
        event = end.model_dump(exclude={"content", "recovered"})
        reply = await self._scripts.run(
            "finish", turn_id, token, end.type, _json(event), end.receipt.pieces, reply_json, end.timestamp, from_seq,
            *_pairs(turn_id, tail), patience_s=0, kept=_is_closing,
        )  # fmt: skip
        if _is_closing(reply):
            reply = await self._scripts.run("announce", turn_id, token, patience_s=0)
        return _verdict(reply)

    async def announce(self, turn_id: str, *, token: str = "") -> Verdict:
        """See `TurnStore.announce`."""
        if not token:
            how, *rest = _texts(await self._scripts.run("announce", turn_id, "", kept=_is_closing))
            if how != Verdict.CLOSING:
                return Verdict(how)
            (token,) = rest
        verdict, _ = _verdict(await self._scripts.run("announce", turn_id, token))
        return verdict

    async def release(
        self,
        turn_id: str,
        *,
        token: str,
        dispatch: str,
        tail: Sequence[LoggedPiece] = (),
        from_seq: int,
        reason: Verdict = Verdict.MOVED,
        failure: Failure | None = None,
    ) -> tuple[Verdict, int]:
        """See `TurnStore.release`. Fails at once where Redis is away, like `append`."""
        why = "" if failure is None else _json(failure._asdict())
        pieces = _pairs(turn_id, tail)
        return _verdict(
            await self._scripts.run("release", turn_id, token, dispatch, reason.value, why, from_seq, *pieces, patience_s=0)
        )

    async def hand_over(self, held: Sequence[tuple[str, str]]) -> None:
        """See `TurnStore.hand_over`. Tries once, like `renew`."""
        if held:
            await self._scripts.run("hand_over", *(part for pair in held for part in pair), patience_s=0)

    async def hold(self, turn_id: str, *, token: str, stopping: bool, mine: str = "") -> Held | Verdict:
        """See `TurnStore.hold`."""
        reply = await self._scripts.run("hold", turn_id, token, "1" if stopping else "", mine)
        how = reply[0].decode()
        if how != "ok":
            return Verdict(how)
        client_id, conversation_id, personality, node, generated_on, attempt, pool, model = _texts(reply[1:9])
        return Held(
            turn_id, token, client_id, conversation_id, personality, node, generated_on, int(attempt), pool, model,
            failure=Failure(**orjson.loads(reply[9])) if reply[9] else None,
            pieces=_pieces(reply[10:]),
        )  # fmt: skip

    async def redispatch(self, turn_id: str, *, dispatch: str, run: str, token: str) -> Due | Verdict:
        """See `TurnStore.redispatch`."""
        how, *rest = _texts(await self._scripts.run("redispatch", turn_id, token, dispatch, run))
        return _due(turn_id, token, *rest) if how == "ok" else Verdict(how)

    async def sweep(self, *, token: str, batch: int) -> Swept:
        """See `TurnStore.sweep`."""
        lapses_ms, *flat = _texts(await self._scripts.run("sweep", token, batch, patience_s=0, kept=lambda reply: len(reply) > 1))
        due = [_due(*flat[i : i + 9]) for i in range(0, len(flat), 9)]
        return Swept(due, int(lapses_ms) / 1000 if lapses_ms else None)

    async def read(self, turn_id: str, *, after: int = 0) -> Snapshot:
        """See `TurnStore.read`."""
        reply = _texts(await self._scripts.run("read", turn_id, after, ""))
        if reply == ["untold"]:
            reply = _texts(await self._scripts.run("read", turn_id, after, "1", kept=bool))
        if not reply:
            raise errors.TurnNotFound(turn_id=turn_id)
        state, client_id, conversation_id, personality, attempt, seq, message_seq, created, end, kept, message = reply[:11]
        return Snapshot(
            turn_id=turn_id,
            client_id=client_id,
            conversation_id=conversation_id,
            personality=personality,
            state=state,
            attempt=int(attempt),
            seq=int(seq),
            message_seq=int(message_seq),
            created=created,
            events=tuple(parse_event(orjson.loads(raw)) for raw in reply[11:]),
            end=parse_event(orjson.loads(end)) if end else None,  # type: ignore[arg-type]
            kept=kept == "1",
            reply=Message.model_validate(orjson.loads(message)) if message else None,
        )

    async def recent_turns(self, client_id: str) -> list[RecentTurn]:
        """See `TurnStore.recent_turns`."""
        flat = _texts(await self._scripts.run("recent_turns", client_id))
        found = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return [RecentTurn(turn_id, state == "open", bool(undelivered)) for turn_id, state, undelivered in found]

    async def delivered(self, turn_id: str) -> None:
        """See `TurnStore.delivered`."""
        await self._scripts.run("delivered", turn_id)


def _pairs(turn_id: str, pieces: Sequence[LoggedPiece]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        event = {
            "type": "piece",
            "turn_id": turn_id,
            "seq": piece.seq,
            "attempt": piece.attempt,
            "text": piece.text,
            "v": EVENT_VERSION,
        }
        out += (_json(event), _json(piece.token_ids) if piece.token_ids else "")
    return out


def _pieces(flat: Sequence[bytes]) -> tuple[LoggedPiece, ...]:
    out = []
    for raw, ids in zip(flat[::2], flat[1::2], strict=True):
        event = orjson.loads(raw)
        if event["type"] == "piece":
            out.append(LoggedPiece(event["seq"], event["attempt"], event["text"], tuple(orjson.loads(ids)) if ids else ()))
    return tuple(out)


def _due(
    turn_id: str,
    token: str,
    personality: str,
    attempt: str,
    barren: str,
    stopping: str,
    overdue: str,
    pool: str,
    closing: str = "",
) -> Due:
    return Due(turn_id, token, personality, int(attempt), int(barren), bool(stopping), bool(overdue), pool, bool(closing))


def _is_begun(reply: Sequence[bytes]) -> bool:
    return reply[0] != b"refused"


def _is_closing(reply: Sequence[bytes]) -> bool:
    return reply[0] == b"closing"


def _verdict(reply: Sequence[bytes]) -> tuple[Verdict, int]:
    return Verdict(reply[0].decode()), int(reply[1]) if len(reply) > 1 else 0


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _texts(reply: Sequence[Any]) -> list[str]:
    return [item.decode() for item in reply]
