"""How many tokens a text has, where nobody counts them beforehand, and how prompt and reply share a context window. Pure.

Tokens are estimated rather too many than too few, and the history is cut before it is sent. An estimate counts three ASCII
characters or two other bytes as a token (ordinary English has four to a token, Chinese two to three bytes) and a little for each
message's wrapping; then it is scaled by the largest ratio that the server reported lately, plus a tenth. Where the first prompts
of a new model are wholly unlike prose, like a page of digits, the estimate may be too low until the server's first report.
"""

from collections import deque
from dataclasses import dataclass

from serve_app.chat.engine import Prefix, Prompt
from serve_app.chat.errors import ContinuationRefused, EngineRejected
from serve_app.chat.prompt import fit

_WRAPPING = 8
"""Tokens that a chat template puts around a message; about five in those of Llama 3, Qwen and Gemma."""
_REMEMBERED = 16
"""Reports of the server that the estimate heeds: enough to outlast a few short prompts, few enough to follow a new model."""
_MARGIN = 1.1
_LOWEST, _HIGHEST = 0.75, 3.0
"""Bounds of the scale. With the highest, an ASCII character is a token: no tokenizer has more."""
_CACHED = 0.4
"""A report so far below the estimate leaves out what the server had in its cache, as old ones did: it is not heeded."""


class TokenEstimate:
    """Says how many tokens a text has, at most and at least, and learns from what the server reports."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=_REMEMBERED)

    def most(self, text: str) -> int:
        """Return how many tokens `text` hardly ever exceeds."""
        return int(self._scale * _unscaled(text)) + 1

    def prompt(self, prompt: Prompt) -> int:
        """Return how many tokens the system prompt and the messages hardly ever exceed."""
        wrapped = _WRAPPING * (len(prompt.messages) + 2)  # the system prompt's, and that of the reply
        texts = _unscaled(prompt.personality.system) + sum(_unscaled(message.content) for message in prompt.messages)
        return int(self._scale * texts) + wrapped + 1

    def learn(self, prompt: Prompt, said: str, reported: int | None) -> None:
        """Heed how many tokens the server counted in `prompt` and in `said`; nothing, where it did not tell."""
        wrapped = _WRAPPING * (len(prompt.messages) + 2)
        texts = _unscaled(prompt.personality.system) + sum(_unscaled(m.content) for m in prompt.messages) + _unscaled(said)
        ratio = (reported or 0) / (texts + wrapped)
        if ratio >= _CACHED:
            self._ratios.append(ratio)

    @property
    def _scale(self) -> float:
        return min(_HIGHEST, max(_LOWEST, _MARGIN * max(self._ratios))) if self._ratios else 1.0


def least_tokens(text: str) -> int:
    """Return how many tokens `text` has at least: one for each word, or for eight bytes beyond ASCII.

    What a prefix used up of `max_tokens` is counted so, because counting too much would cut an answer short after a takeover. A
    continued reply may therefore be longer than `max_tokens`, by less than its prefix.
    """
    return max(len(text.split()), (len(_utf8(text)) - _ascii(text)) // 8)


@dataclass(frozen=True)
class Share:
    """What prompt and reply get of a context window: the conversation that is left, and the tokens that may be said."""

    prompt: Prompt
    max_tokens: int


def share_window(prompt: Prompt, prefix: Prefix, *, window: int, most: int, estimate: TokenEstimate) -> Share | None:
    """Share a window of `window` tokens for a reply of `most` tokens; nothing where the prefix has used those up.

    The reply gets what it may need, half at the most; the prompt gets the rest and is cut to it. The reply ends where the window
    does: beyond, a server would drop the beginning of the prompt in the middle of the answer, or fail. A personality that wants a
    smaller window gets that one shared.

    Raises:
        EngineRejected: the system prompt and the last message are too long for the window.
        ContinuationRefused: the same, with what was already said.
    """
    window = prompt.personality.window_within(window)
    left = most - least_tokens(prefix.text)
    if prefix.text and left <= 0:
        return None
    said = estimate.most(prefix.text) if prefix.text else 0
    reserved = min(left, max(1, (window - said) // 2))
    try:
        fitting = fit(prompt, room=window - said - reserved, count=estimate.prompt)
    except EngineRejected:
        if not prefix.text:
            raise
        raise ContinuationRefused(
            f"What was said so far and the message do not fit into the context window of {window} tokens together. "
            "Send the message again for a shorter answer."
        ) from None
    return Share(fitting, max(1, min(left, window - said - estimate.prompt(fitting))))


def _unscaled(text: str) -> float:
    ascii_ = _ascii(text)
    return ascii_ / 3 + (len(_utf8(text)) - ascii_) / 2


def _ascii(text: str) -> int:
    return len(text) if text.isascii() else sum(character < "\x80" for character in text)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
