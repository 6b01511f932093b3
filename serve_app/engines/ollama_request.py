"""What Ollama is asked for one reply: the messages that fit its context window, and the options. Pure; no I/O.

Ollama has no endpoint that counts tokens, and cuts a prompt that is too long without a word. So the history is cut before it is
sent (`serve_app.engines.token_estimate`), to the window that the personality wants where that is smaller. `num_ctx` is the pool's
all the same: Ollama loads a model anew where it changes, and two personalities would take turns at that. Where an estimate is too
low after all, the server drops the oldest messages itself, and keeps the system prompt, too.
"""

from dataclasses import dataclass

from serve_app.chat.engine import Prefix, Prompt
from serve_app.chat.options import Options
from serve_app.engines.token_estimate import TokenEstimate, share_window


@dataclass(frozen=True)
class Request:
    """One reply, as Ollama is asked for it."""

    prompt: Prompt
    """What is left of the conversation; the engine learns from its count."""
    messages: list[dict[str, str]]
    options: dict[str, float | int]


def build_request(
    prompt: Prompt, options: Options, prefix: Prefix, *, window: int, num_predict: int, estimate: TokenEstimate
) -> Request | None:
    """Return what to ask for, or nothing where the prefix has used up `max_tokens`. `window` is what the model is loaded with.

    Raises:
        EngineRejected: the system prompt and the last message are too long for the window.
        ContinuationRefused: the same, with what was already said.
    """
    share = share_window(prompt, prefix, window=window, most=options.max_tokens or num_predict, estimate=estimate)
    if share is None:
        return None
    asked: dict[str, float | int] = {"num_ctx": window, "num_predict": share.max_tokens}
    for name in ("temperature", "top_p", "seed"):
        if (value := getattr(options, name)) is not None:
            asked[name] = value
    messages = [{"role": "system", "content": share.prompt.personality.system}]
    messages += [{"role": str(message.role), "content": message.content} for message in share.prompt.messages]
    if prefix.text:
        messages.append({"role": "assistant", "content": prefix.text})
    return Request(share.prompt, messages, asked)


def full_name(model: str) -> str:
    """Return a model's name as the server lists it: with its tag, which is `latest` where none is given."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"
