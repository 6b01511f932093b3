"""The conversation with a server that speaks OpenAI's protocol: what is asked, and its failures as `EngineError`s.

Imports httpx; `serve_app.engines.openai_compatible` imports this module in its `start`.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from serve_app.chat.errors import ContinuationRefused, EngineError, EngineRejected, EngineTimeout, EngineUnavailable

T = TypeVar("T")
_LINE_BYTES = 4 * 1024 * 1024
"""Largest line that is believed; a real one holds one token, or a handful."""
_AFTER_END_S = 2.0
"""How long the counts may come after the reason why the reply has ended. It is whole without them."""
_BROKEN = ("abort", "error", "cancelled")
"""What servers give as the reason where a reply did not come to its end."""
_TOO_LONG = (
    "context length",
    "context size",
    "context window",
    "context_length",
    "exceed_context",
    "maximum context",
    "too long",
)
_PREFIX = ("prefill", "enable_thinking", "continue_final_message", "final message", "jinja", "template", "last message")
"""Words by which servers say that a prefix is the matter, whatever the status: their templates fail with 500."""
_BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_KEY = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event of a reply adds; nothing at all: a sign of life.

    `end`: why the reply has ended; the counts come with it or after it, if they come.
    """

    text: str = ""
    thinking: bool = False
    end: str = ""
    prompt_tokens: int | None = None
    tokens: int | None = None


class OpenAIApi:
    """One server. Every method raises `EngineError`s only, and stops what it asked for when it is cancelled or closed."""

    def __init__(self, base_url: str, key: SecretStr, *, connect_s: float) -> None:
        """Open nothing yet. Who asks sets the time limits; only connecting has one of its own."""
        self.url = base_url.rstrip("/")
        secret = key.get_secret_value()
        self._http = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {secret}"} if secret else {})},
            timeout=httpx.Timeout(None, connect=connect_s),
            trust_env=False,  # the configuration says where the server is, not somebody's shell
            follow_redirects=False,  # nor does the server: the key is for this one
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def models(self) -> dict[str, int]:
        """Return the models that the server has, each with its context window; 0 where it does not tell."""
        with self._failures():
            answer = await self._http.get(f"{self.url}/models")
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise EngineUnavailable(
                    f"{self.url}/models is not there. base_url ends with the version, mostly /v1: correct it."
                )
            if not answer.is_success:
                raise self._refusal(answer.status_code, answer.content)
            return {str(one["id"]): _count(one.get("max_model_len")) or 0 for one in answer.json()["data"]}

    async def chat(
        self, body: Mapping[str, Any], *, continues: bool, first_s: float, silence_s: float
    ) -> AsyncGenerator[Delta, None]:
        """Yield what a reply adds, up to its end and its counts. Closing it closes the connection, which ends the reply.

        Raises:
            EngineUnavailable: the server is away, busy, lacks the model, or ends before the end.
            EngineTimeout: it is silent for too long.
            EngineRejected: it does not take the request.
            ContinuationRefused: the same where `continues`, or after the first text.
        """
        model, ended = str(body["model"]), False
        try:
            with self._failures():
                async with aclosing(self._lines(body, model, continues, first_s)) as lines:
                    limit = first_s
                    while (line := await self._next(lines, _AFTER_END_S if ended else limit)) is not None:
                        limit = silence_s
                        if line == b"[DONE]":
                            break
                        delta = self._delta(line, model, continues)
                        if delta is not None:
                            ended, continues = ended or bool(delta.end), continues or bool(delta.text)
                            yield delta
        except (EngineUnavailable, EngineTimeout):
            if not ended:
                raise
        if not ended:
            raise EngineUnavailable(f"{self.url} ended its answer before its end. Its own log says why.")

    async def _lines(self, body: Mapping[str, Any], model: str, continues: bool, first_s: float) -> AsyncGenerator[bytes, None]:
        """Yield the data of each event as it comes, without data for a sign of life."""
        request = self._http.build_request("POST", f"{self.url}/chat/completions", json=body)
        response = await self._in_time(self._http.send(request, stream=True), first_s)
        try:
            if not response.is_success:
                raise self._refusal(response.status_code, await self._in_time(response.aread(), first_s), model, continues)
            if "json" in response.headers.get("content-type", ""):  # some put an error there, with 200
                whole = await self._in_time(response.aread(), first_s)
                self._delta(whole, model, continues)
                raise EngineUnavailable(f"{self.url} does not stream its answers.")
            async with aclosing(read_data(response.aiter_bytes())) as lines:
                async for line in lines:
                    yield line
        finally:
            await response.aclose()

    async def _next(self, lines: AsyncIterator[bytes], limit: float) -> bytes | None:
        return await self._in_time(anext(lines, None), limit)

    async def _in_time(self, work: Awaitable[T], limit: float) -> T:
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError:
            raise EngineTimeout(f"{self.url} hangs: it said nothing for {limit:g} s. Its own log may say why.") from None

    def _delta(self, line: bytes, model: str, continues: bool) -> Delta | None:
        """Return what an event adds, nothing for one that only begins a reply; a comment is a sign of life."""
        if not line:
            return Delta()
        event = json.loads(line)
        if event.get("error") or event.get("object") == "error":
            error = event.get("error") or event
            code = error.get("code") if isinstance(error, dict) else None
            raise self._refusal(code if isinstance(code, int) else 0, line, model, continues)
        usage, [choice] = event.get("usage") or {}, (event.get("choices") or [{}])[:1]
        delta, end = choice.get("delta") or {}, str(choice.get("finish_reason") or "")
        if end in _BROKEN:
            raise EngineUnavailable(f"{self.url} broke off its answer ({end}). Its own log says why.")
        thinking = bool(delta.get("reasoning_content") or delta.get("reasoning"))
        text = delta.get("content")
        prompt_tokens, tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        found = Delta(text if isinstance(text, str) else "", thinking, end, prompt_tokens, tokens)
        return found if found != Delta() else None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn whatever asking the server raises into an `EngineError`."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError) as error:
            raise EngineUnavailable(
                f"Nothing answers at {self.url} ({type(error).__name__}). Start the server there, or correct base_url."
            ) from error
        except (httpx.TransportError, httpx.StreamError, OSError) as error:
            raise EngineUnavailable(f"{self.url} broke off ({type(error).__name__}). Its own log says why.") from error
        except (ValueError, KeyError, TypeError, AttributeError, httpx.InvalidURL) as error:
            # Another program on that port, or the last line of a connection that was cut in the middle of it.
            raise EngineUnavailable(f"What answers at {self.url} does not speak OpenAI's protocol, or broke off.") from error

    def _refusal(self, status: int, body: bytes, model: str = "", continues: bool = False) -> EngineError:
        """Return what a refusal of the server means; 0 is the status of one in the middle of a stream that has no code."""
        told = _message(body)
        low = told.lower()
        if status in _KEY:
            return EngineUnavailable(
                f"{self.url} refuses the key ({told}). Put the right one into the file that api_key_file names."
            )
        if status in _BUSY:
            return EngineUnavailable(f"{self.url} is busy or still loading ({told}).")
        if any(words in low for words in _TOO_LONG) or status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            if continues:
                return ContinuationRefused(f"What was said so far is too long for {model} ({told}). Send the message again.")
            return EngineRejected(f"The message is too long for {model}: {told}. Send a shorter one, or lower context_window.")
        if model and (status == httpx.codes.NOT_FOUND or ("model" in low and ("not found" in low or "not exist" in low))):
            return EngineUnavailable(f"{self.url} has no model {model} ({told}). Load it there, or correct `model`.")
        client_error = status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
        if continues and (client_error or any(words in low for words in _PREFIX)):
            return ContinuationRefused(
                f"{model} does not go on from what was said ({told}). Send the message again for a new answer."
            )
        if client_error:
            return EngineRejected(f"{self.url} does not take the request for {model}: {told}")
        return EngineUnavailable(f"{self.url} failed ({f'{status}: ' if status else ''}{told}). Its own log says more.")


async def read_data(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the data of each line that has any, and nothing for each comment; a line that was cut off is dropped.

    Bytes are cut at line feeds and not decoded before a line is whole, so a character may come in two chunks. Each line counts by
    itself: no server of this protocol spreads an event over several. Old llama.cpp servers say `error:` instead of `data:`.

    Raises:
        ValueError: a line is without an end.
    """
    buffer = b""
    async for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > _LINE_BYTES:
            raise ValueError("a line without an end")
        for line in lines:
            kind, colon, data = line.strip().partition(b":")
            if colon and not kind:
                yield b""
            elif kind == b"data":
                yield data.strip()
            elif kind == b"error":
                yield b'{"error": %s}' % data.strip()


def _message(body: bytes) -> str:
    """Return what an error says to people, in whatever form it comes, cut to a length that can be shown."""
    text = body.decode(errors="replace").strip()
    try:
        said = json.loads(text)
        while isinstance(said, dict):
            said = said.get("error") or said.get("message") or said.get("detail") or text
        text = said if isinstance(said, str) else text
    except ValueError:
        pass
    return text[:200] or "no reason given"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
