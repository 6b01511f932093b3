"""Moving a live answer off a replica whose node is leaving, or whose engine failed: another attempt goes on with it at once."""

import asyncio

from serve_app.chat.errors import StoreUnavailable
from serve_app.chat.turns import Failure, TurnStore, Verdict
from serve_app.chat.writer import Superseded, Writer

RETRY_S = 0.25


async def move(
    turns: TurnStore,
    turn_id: str,
    writer: Writer,
    *,
    token: str,
    dispatch: str,
    gives_up_at: float,
    reason: Verdict = Verdict.MOVED,
    failure: Failure | None = None,
) -> Verdict:
    """Write down what was said and give the turn back to whoever dispatched it with `dispatch`; return `reason`.

    `failure` is that of the engine, for the turn's end where nobody else can go on.

    `writer` must have stopped appending. Tries, while the store is away, until the loop's time `gives_up_at`.

    Raises:
        Superseded: the turn was not this run's any more, or the store stayed away: then its lease lapses.
    """
    sent = writer.acknowledged
    while True:
        try:
            verdict, seq = await turns.release(
                turn_id,
                token=token,
                dispatch=dispatch,
                tail=writer.pieces[sent:],
                from_seq=sent + 1,
                reason=reason,
                failure=failure,
            )
        except StoreUnavailable:
            if asyncio.get_running_loop().time() > gives_up_at:
                raise Superseded(Verdict.GONE) from None
            await asyncio.sleep(RETRY_S)
            continue
        if verdict is Verdict.OK:
            return reason
        if verdict is not Verdict.EXPECT:
            raise Superseded(verdict)
        sent = seq - 1
