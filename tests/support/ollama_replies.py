"""What the stand-in for Ollama says: text that is a function of the model and the messages, in tokens that look like a model's.

A reply does not depend on the prefix it goes on from, so the right rest of it is known to the letter wherever it was cut.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

_WORDS = """
    the lamp of the lighthouse turns slowly over a quiet sea while naïve gulls cry and Grüße from Tromsø arrive 🌊 with 漢字 and
    mÿ friend waits for “good” news — the café is open, the harbour-master reads Ελληνικά aloud and nobody hurries because
    understanding takes time 🧑‍🚀 and every question deserves an unhurried answer
""".split()  # noqa: SIM905 - prose
_TOKEN = re.compile(r"\s*\S{1,7}|\s+")
_WRAPPING = 4
"""Tokens that a template puts around each message."""

Message = Mapping[str, object]


def tokens_of(text: str) -> list[str]:
    """Split `text` as a byte-pair tokenizer would, roughly: a word with the space before it, a long word in parts."""
    return _TOKEN.findall(text)


def count(messages: Sequence[Message]) -> int:
    """Say how many tokens a prompt has."""
    return sum(_WRAPPING + len(tokens_of(str(message.get("content", "")))) for message in messages)


def reply(model: str, messages: Sequence[Message]) -> str:
    """Return the whole reply of `model` to `messages`, 20 to 32 words of it, never plain ASCII."""
    digest = hashlib.sha256(repr((model, [(m.get("role"), m.get("content")) for m in messages])).encode()).digest()
    words = [_WORDS[digest[at % 32] * (at + 7) % len(_WORDS)] for at in range(20 + digest[0] % 13)]
    words[3], words[9] = "Grüße,\n\n", "🌊"  # every reply has letters beyond ASCII and a line's end in it
    return " ".join(words).replace("\n\n ", "\n\n") + "."


def rest(model: str, messages: Sequence[Message], said: str) -> list[str]:
    """Return the tokens that follow `said`: the rest of the reply, or where it is no beginning of it, something that goes on."""
    whole = reply(model, messages)
    if whole.startswith(said):
        return _after(whole, len(said))
    return tokens_of(" " + reply(model, [*messages, {"role": "assistant", "content": said}]))


def thoughts(messages: Sequence[Message]) -> list[str]:
    """Return what a thinking model thinks first, in tokens."""
    return tokens_of(f"They said {str(messages[-1].get('content', ''))[:40]!r}. Let me think about that for a while.")


def _after(whole: str, cut: int) -> list[str]:
    tokens, at = [], 0
    for token in tokens_of(whole):
        if at + len(token) > cut:
            tokens.append(token[max(0, cut - at) :])
        at += len(token)
    return tokens
