"""From a stored conversation to what an engine is asked."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import replace

from serve_app.chat.engine import Prompt, PromptMessage
from serve_app.chat.errors import EngineRejected
from serve_app.chat.messages import Role
from serve_app.chat.personalities import Personality
from serve_app.chat.turns import PastMessage


def build_prompt(personality: Personality, history: Iterable[PastMessage], model: str = "") -> Prompt:
    """Return the prompt for `history`, oldest first, the user's message last, to be answered by `model`.

    A stopped reply enters: the user saw it and may refer to it. A failed one does not: nobody meant it (design, section 3).
    """
    return Prompt(personality, tuple(PromptMessage(m.role, m.content) for m in history if m.status != "failed"), model)


def fit(prompt: Prompt, *, room: int, count: Callable[[Prompt], int]) -> Prompt:
    """Return `prompt` without as many of its oldest whole turns as it takes for `count` to say no more than `room` tokens.

    A turn is a user's message with all that follows up to the next one. The system prompt and the last turn always stay.
    `count` is asked about log2(turns) times, and never says less for more messages.

    Raises:
        EngineRejected: the system prompt and the last message alone are too long.
    """
    turns = [at for at, message in enumerate(prompt.messages) if message.role == Role.USER]
    cuts = [0, *turns[1:]] if turns else [0]
    kept = bisect_left(cuts, True, key=lambda cut: count(replace(prompt, messages=prompt.messages[cut:])) <= room)
    if kept == len(cuts):
        raise EngineRejected(
            f"The message and the personality's system prompt are longer than the context window ({room} tokens are left "
            "for them). Send a shorter message, or ask for fewer max_tokens."
        )
    return replace(prompt, messages=prompt.messages[cuts[kept] :])
