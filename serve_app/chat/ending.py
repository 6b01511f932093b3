"""Ending a turn whose holder is gone, or shall go: stop by a user, failure by a router (laws 1 and 3)."""

from serve_app.chat.errors import ChatError, EngineError
from serve_app.chat.events import End, Failed, Receipt, Stopped
from serve_app.chat.ids import new_token
from serve_app.chat.messages import now
from serve_app.chat.meter import TURNS, UNMEASURED, Meter
from serve_app.chat.turns import Failure, Held, TurnStore, Verdict


async def stop_turn(turns: TurnStore, turn_id: str, *, meter: Meter = UNMEASURED) -> End | None:
    """Stop a turn, wherever it runs; return its end, or None where it had ended before.

    The writer is fenced at once, so what a client gets afterwards is the end and nothing else.
    """
    held = await turns.hold(turn_id, token=new_token(), stopping=True)
    return await _end(turns, turn_id, held, None, meter)


async def fail_turn(
    turns: TurnStore, turn_id: str, error: ChatError | None, *, mine: str, meter: Meter = UNMEASURED
) -> End | None:
    """End a turn that this router holds with the token `mine`: as failed with `error`, or as stopped without one."""
    held = await turns.hold(turn_id, token=mine, stopping=error is None, mine=mine)
    return await _end(turns, turn_id, held, error, meter)


async def fail_given_back(turns: TurnStore, turn_id: str, *, mine: str, meter: Meter = UNMEASURED) -> End | None:
    """End a turn that was given back to this router, where nobody else can go on: as failed with what its last run said."""
    held = await turns.hold(turn_id, token=mine, stopping=False, mine=mine)
    failure = held.failure if isinstance(held, Held) else None
    return await _end(turns, turn_id, held, failure or EngineError(), meter)


async def _end(
    turns: TurnStore, turn_id: str, held: Held | Verdict, error: ChatError | Failure | None, meter: Meter
) -> End | None:
    if isinstance(held, Verdict):
        if held is Verdict.CLOSING:  # it has an end: help whoever stored it to show it
            await turns.announce(turn_id)
        return None
    texts = [piece.text for piece in held.pieces]
    facts = {
        "turn_id": held.turn_id,
        "conversation_id": held.conversation_id,
        "content": "".join(texts),
        "receipt": Receipt.of(texts),
        "node": held.node,
        "generated_on": held.generated_on,
        "personality": held.personality,
        "pool": held.pool,
        "model": held.model,
        "attempt": held.attempt,
        "timestamp": now(),
    }
    end: Stopped | Failed
    if error is None:
        end = Stopped.model_validate(facts)
    else:
        end = Failed.model_validate({**facts, "code": error.code, "message": error.message, "retryable": error.retryable})
    verdict, _ = await turns.finish(held.turn_id, token=held.token, end=end, from_seq=len(texts) + 1)
    if verdict is not Verdict.OK:
        return None
    meter.count(TURNS, held.personality, held.pool or "none", held.model or "none", end.type, error.code if error else "")
    return end
