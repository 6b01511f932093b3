"""The engine `openai_compatible`: a server that speaks OpenAI's protocol, like llama.cpp's, LM Studio's, or a vLLM elsewhere.

*Continuation* (law 5). Whether a server goes on from an assistant message at the end cannot be asked; `continuation` says it.
What the seam shows to be an echo is taken off, what it shows to be a new answer is refused (`serve_app.engines.openai_seam`).

*The second path.* `none`, a server that refuses the prefix, a model that thinks anew or begins anew end the attempt with
`ContinuationRefused` before anything of it is said: an engine of another pool goes on, or the turn ends as failed and what was
said is kept.

*Thinking* that the server tells apart (`reasoning_content`, `reasoning`) is no part of a reply, but a sign of life.

*Stopping.* Closing the generator closes the connection, and these servers stop generating then.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, EngineStatus, Prefix, Prompt
from serve_app.chat.errors import ContinuationRefused, EngineError, EngineUnavailable, ModelNotServed
from serve_app.chat.events import Usage
from serve_app.chat.options import Options
from serve_app.engines.openai_config import OpenAICompatibleConfig
from serve_app.engines.openai_seam import EchoSeam
from serve_app.engines.token_estimate import Share, TokenEstimate, least_tokens, share_window

if TYPE_CHECKING:
    from serve_app.engines.openai_api import OpenAIApi

__all__ = ["OpenAICompatibleConfig", "OpenAICompatibleEngine"]
log = logging.getLogger(__name__)


class OpenAICompatibleEngine(Engine):
    """Answers with a model of a server. Any number of replies may be asked for at once; the server makes `slots`."""

    def __init__(self, config: OpenAICompatibleConfig) -> None:
        """Keep `config`; nothing is asked before `start`."""
        self._config = config
        continues_by = "nothing" if config.continuation == "none" else "text"
        self._info = EngineInfo("openai_compatible", config.model, language_model=True, continues_by=continues_by)
        self._names = tuple(dict.fromkeys((config.model, *config.models)))
        self._estimates = {name: TokenEstimate() for name in self._names}
        self._api: OpenAIApi | None = None
        self._starting = asyncio.Lock()
        self._there: dict[str, int] = {}
        self._busy, self._note, self._ready = 0, "", False

    @property
    def info(self) -> EngineInfo:
        """What this engine is, with the model that answers where none is named."""
        return self._info

    @property
    def status(self) -> EngineStatus:
        """Which of its models the server has, as far as last seen, and what it is at."""
        models = tuple(name for name in self._names if name in self._there)
        return EngineStatus(models, self._busy, self._config.slots, self._note)

    async def start(self) -> None:
        """Read the key, and return when the server has all models.

        Raises:
            EngineUnavailable: the key cannot be read, the server is away, hangs, refuses the key, or lacks a model.
        """
        async with self._starting:
            if self._ready:
                return
            from serve_app.engines.openai_api import OpenAIApi

            if self._api is None:
                key = await asyncio.to_thread(self._read_key)
                self._api = OpenAIApi(self._config.base_url, key, connect_s=self._config.connect_s)
            try:
                await self._look(self._api)
            except EngineError:
                api, self._api = self._api, None  # the next start reads the key again: it may be what was wrong
                await api.close()
                raise
            self._ready = True

    async def check(self) -> None:
        """Return if the server answers and still has all models.

        Raises:
            EngineUnavailable: it does not, or `start` has not come to its end.
        """
        await self._look(self._connected())

    async def close(self) -> None:
        """Close the connections."""
        self._ready = False
        api, self._api = self._api, None
        if api is not None:
            await api.close()

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        """Yield what the model says after `continue_from` as it comes, a piece for each of the server's; the last has the usage.

        Pieces without text are signs of life: the model thinks, or it is not clear yet whether it goes on or begins anew.

        Raises:
            EngineUnavailable: the server is away, busy, broke off, or has lost the model.
            EngineTimeout: it hangs.
            ModelNotServed: the model is none of this engine's.
            EngineRejected: the message is too long, or the server does not take the request.
            ContinuationRefused: the model does not go on from `continue_from`.
        """
        config, api, said = self._config, self._connected(), continue_from.text
        model = self._chosen(prompt)
        if said and config.continuation == "none":
            raise ContinuationRefused(f"{model} cannot go on from what was said. Send the message again for a new answer.")
        estimate, before = self._estimates[model], least_tokens(said)
        window = min(config.context_window, self._there.get(model) or config.context_window)
        share = share_window(
            prompt, continue_from, window=window, most=options.max_tokens or config.max_tokens, estimate=estimate
        )
        if share is None:
            yield EnginePiece("", usage=Usage(prompt_tokens=estimate.prompt(prompt), completion_tokens=before))
            return
        seam, tokens = EchoSeam(said), 0
        prompt_tokens: int | None = None
        counted: int | None = None
        deltas = api.chat(
            self._body(model, share, options, seam.sent),
            continues=bool(seam.sent),
            first_s=config.first_token_s,
            silence_s=config.silence_s,
        )
        with self._counted():
            async with aclosing(deltas):
                async for delta in deltas:
                    if delta.thinking and seam.sent:
                        raise ContinuationRefused(
                            f"{model} began to think anew instead of going on. Send the message again for a new answer."
                        )
                    tokens += bool(delta.text or delta.thinking)
                    prompt_tokens = prompt_tokens if delta.prompt_tokens is None else delta.prompt_tokens
                    counted = counted if delta.tokens is None else delta.tokens
                    if delta.text:
                        yield EnginePiece(seam.feed(delta.text))
                    elif not delta.end and delta.tokens is None:
                        yield EnginePiece("")
        rest = seam.end()
        estimate.learn(share.prompt, said, prompt_tokens)
        asked = prompt_tokens - before if prompt_tokens else estimate.prompt(share.prompt)
        yield EnginePiece(rest, usage=Usage(prompt_tokens=max(0, asked), completion_tokens=(counted or tokens) + before))

    def _body(self, model: str, share: Share, options: Options, sent: str) -> dict[str, Any]:
        """Return what the server is asked, to go on from `sent`.

        Messages of one speaker in a row, as after a reply that failed, become one: many templates insist on taking turns.
        """
        config = self._config
        messages = [{"role": "system", "content": share.prompt.personality.system}]
        for message in share.prompt.messages:
            if messages[-1]["role"] == str(message.role):
                messages[-1]["content"] += f"\n\n{message.content}"
            else:
                messages.append({"role": str(message.role), "content": message.content})
        going_on: dict[str, Any] = {}
        if sent:
            messages.append({"role": "assistant", "content": sent})
            going_on = dict(config.extra_body_continuing)
            if config.continuation == "vllm":
                going_on |= {"continue_final_message": True, "add_generation_prompt": False}
        asked = {name: value for name in ("temperature", "top_p", "seed") if (value := getattr(options, name)) is not None}
        return {
            **config.extra_body,
            **asked,
            **going_on,
            "model": model,
            "messages": messages,
            "max_tokens": share.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def _look(self, api: "OpenAIApi") -> None:
        """See whether the server has all models."""
        limit = self._config.check_s
        try:
            try:
                async with asyncio.timeout(limit):
                    there = await api.models()
            except TimeoutError:
                raise EngineUnavailable(f"{api.url} hangs: no answer to a check within {limit:g} s. Restart it.") from None
            if missing := [name for name in self._names if name not in there]:
                raise EngineUnavailable(
                    f"{api.url} has no model {', '.join(missing)}, but {', '.join(sorted(there)[:8]) or 'none'}. Load it there, "
                    "or correct `model`; llama.cpp's server is given a name with --alias."
                )
        except EngineError as error:
            self._there, self._note = {}, error.message
            raise
        if not self._there:
            log.info("%s has %s.", api.url, ", ".join(sorted(there)[:8]))
        self._there, self._note = there, ""

    def _read_key(self) -> SecretStr:
        if not (file := self._config.api_key_file):
            return SecretStr("")
        try:
            key = Path(file).read_text().strip()
        except (OSError, ValueError) as error:
            self._note = f"The key cannot be read from {file} ({type(error).__name__}). Put it there, readable by this user."
            raise EngineUnavailable(self._note) from error
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            self._note = f"{file} holds no key: one line of printable characters, and nothing else."
            raise EngineUnavailable(self._note)
        return SecretStr(key)

    def _connected(self) -> "OpenAIApi":
        if self._api is None or not self._ready:
            raise EngineUnavailable(self._note or "The engine is not started, or is closed. Start it first.")
        return self._api

    def _chosen(self, prompt: Prompt) -> str:
        model = prompt.model or self._config.model
        if model not in self._names:
            has = ", ".join(self._names)
            raise ModelNotServed(f"This pool has no model {model}. It has {has}; more go into `models` of its configuration.")
        return model

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
