"""From a stored conversation to what an engine is asked."""

from collections.abc import Iterable

from serve_app.chat.engine import Prompt, PromptMessage
from serve_app.chat.personalities import Personality
from serve_app.chat.turns import PastMessage


def build_prompt(personality: Personality, history: Iterable[PastMessage]) -> Prompt:
    """Return the prompt for `history`, oldest first, the user's message last.

    A stopped reply enters: the user saw it and may refer to it. A failed one does not: nobody meant it (design, section 3).
    """
    return Prompt(personality, tuple(PromptMessage(m.role, m.content) for m in history if m.status != "failed"))
