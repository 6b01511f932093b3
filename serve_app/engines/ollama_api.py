"""The conversation with an Ollama server: what is asked over HTTP, and every way in which that fails as an `EngineError`.

Imports the `ollama` client; `serve_app.engines.ollama` imports this module in its `start`, so that other processes need neither.
The client has no call for `/api/version` nor for looking at a rendered prompt: these two go through httpx, on which it stands.
A reply is read by `serve_app.engines.ollama_lines`, because it is the one thing that is asked for all the time.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import httpx
import ollama
from pydantic import ValidationError

from serve_app.chat.errors import ContinuationRefused, EngineError, EngineRejected, EngineUnavailable
from serve_app.engines.ollama_continuation import Ending
from serve_app.engines.ollama_lines import Line, LineReader
from serve_app.engines.ollama_request import Request, full_name

T = TypeVar("T")
_NOT_THERE = (httpx.ConnectError, httpx.ConnectTimeout, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_NO_OLLAMA = (json.JSONDecodeError, httpx.InvalidURL, aiohttp.ClientError)
Think = bool | str | None
_TOO_LONG = ("context length", "context size", "too long", "exceeds the available context", "exceed_context")
_MARK = "This text goes on "
"""Ends with a space, because some templates drop it."""


@dataclass(frozen=True)
class ModelFacts:
    """What the server says of a model. `context_length` is 0 where it does not tell."""

    thinks: bool
    context_length: int


@dataclass(frozen=True)
class PullProgress:
    """One line of a pull: what goes on, and how many bytes of which layer are there."""

    status: str
    layer: str
    completed: int
    total: int


class OllamaApi:
    """One server. Every method raises `EngineError`s only, and stops what it asked for when it is cancelled or closed."""

    def __init__(self, url: str, *, connect_s: float) -> None:
        """Open nothing yet. Who asks sets the time limits; only connecting has one of its own."""
        self.url = url
        # Environment variables like HTTP_PROXY are not heeded: the server is this node's. Nor is the number of them bounded.
        settings: dict[str, Any] = {
            "timeout": httpx.Timeout(None, connect=connect_s),
            "trust_env": False,
            "follow_redirects": False,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=16),
        }
        self._client = ollama.AsyncClient(host=url, **settings)
        self._http = httpx.AsyncClient(base_url=url, **settings)
        self._lines = LineReader(url, connect_s=connect_s)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()  # type: ignore[no-untyped-call]
        await self._http.aclose()
        await self._lines.close()

    async def version(self) -> str:
        """Return the version of the server."""
        with self._failures():
            answer = await self._http.get("/api/version")
            answer.raise_for_status()
            return str(answer.json()["version"])

    async def installed(self) -> set[str]:
        """Return the full names of the models that the server has."""
        with self._failures():
            return {full_name(one.model) for one in (await self._client.list()).models if one.model}

    async def loaded(self) -> set[str]:
        """Return the full names of the models that are in its memory."""
        with self._failures():
            return {full_name(one.model) for one in (await self._client.ps()).models if one.model}

    async def facts(self, model: str) -> ModelFacts:
        """Return what the server says of a model."""
        with self._failures(model):
            shown = await self._client.show(model)
        lengths = [n for key, n in (shown.modelinfo or {}).items() if key.endswith(".context_length") and isinstance(n, int)]
        return ModelFacts("thinking" in (shown.capabilities or ()), max(lengths, default=0))

    async def load(self, model: str, *, num_ctx: int, keep_alive: float) -> None:
        """Have a model loaded, and return when it is. Another `num_ctx` than that of the replies would have it loaded twice."""
        with self._failures(model):
            await self._client.chat(model, messages=[], options={"num_ctx": num_ctx}, keep_alive=keep_alive)

    async def ending(self, model: str, *, num_ctx: int, keep_alive: float, think: Think) -> Ending:
        """Say how the prompt ends where the last message is a beginning of the reply.

        Uses Ollama's `_debug_render_only`, which is not in its manual. A server that does not know it answers with one token.
        """
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": _MARK}],
            "stream": False,
            "options": {"num_ctx": num_ctx, "num_predict": 1},
            "keep_alive": keep_alive,
            "_debug_render_only": True,
            **({} if think is None else {"think": think}),
        }
        with self._failures(model):
            answer = await self._http.post("/api/chat", json=body)
            if answer.status_code == httpx.codes.BAD_REQUEST:
                return Ending.CLOSED
            answer.raise_for_status()
            rendered = str((answer.json().get("_debug_info") or {}).get("rendered_template", ""))
        if not rendered:
            return Ending.UNKNOWN
        if rendered.endswith(_MARK):
            return Ending.OPEN
        return Ending.TRIMMED if rendered.endswith(_MARK.rstrip()) else Ending.CLOSED

    async def pull(self, model: str, *, silence_s: float) -> AsyncGenerator[PullProgress, None]:
        """Have a model fetched, yielding how far it is. Closing stops it; the server goes on from there at the next one."""
        with self._failures():
            lines = await self._client.pull(model, stream=True)
            async with aclosing(self._patiently(lines, silence_s)) as patient:
                async for line in patient:
                    yield PullProgress(line.status or "", line.digest or "", line.completed or 0, line.total or 0)

    async def chat(
        self, model: str, request: Request, *, think: Think, keep_alive: float, first_s: float, silence_s: float
    ) -> AsyncGenerator[list[Line], None]:
        """Yield the lines of a reply, those that came together in one list, up to the last one, which is `done`.

        Closing it closes the connection, which ends the reply.

        Raises:
            EngineUnavailable: the server is away, is silent for too long, or ends before the end.
            EngineRejected: it does not take the request.
            ContinuationRefused: the same, with a trailing assistant message.
        """
        continues = request.messages[-1]["role"] == "assistant"
        body = {
            "model": model,
            "messages": request.messages,
            "stream": True,
            "options": request.options,
            "keep_alive": keep_alive,
            **({} if think is None else {"think": think}),
        }
        with self._failures(model, continues=continues):
            async with aclosing(self._lines.read(body, first_s=first_s, silence_s=silence_s)) as batches:
                async for batch in batches:
                    yield batch
                    if batch[-1].done:
                        return
        raise EngineUnavailable(f"Ollama at {self.url} ended its answer before its end. Its own log says why.")

    async def _patiently(self, lines: AsyncIterator[T], limit_s: float) -> AsyncGenerator[T, None]:
        """Yield `lines`; give up where the next one takes too long. Closes them at once, and with them the connection."""
        async with aclosing(lines):  # type: ignore[type-var]
            while True:
                try:
                    async with asyncio.timeout(limit_s):
                        line = await anext(lines)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise EngineUnavailable(
                        f"Ollama at {self.url} hangs: it said nothing for {limit_s:g} s. Restart it."
                    ) from None
                yield line

    @contextmanager
    def _failures(self, model: str = "", *, continues: bool = False) -> Iterator[None]:
        """Turn whatever asking the server raises into an `EngineError`."""
        try:
            yield
        except ollama.ResponseError as error:
            raise self._refusal(error.status_code, str(error.error), model, continues) from None
        except httpx.HTTPStatusError as error:
            raise self._refusal(error.response.status_code, error.response.text, model, continues) from None
        except (*_NOT_THERE, ConnectionError) as error:
            raise EngineUnavailable(
                f"Ollama does not answer at {self.url} ({type(error).__name__}). Start it there, or set AURORA_OLLAMA_URL."
            ) from error
        except (httpx.TransportError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise EngineUnavailable(f"Ollama at {self.url} broke off ({type(error).__name__}). Its own log says why.") from error
        except (*_NO_OLLAMA, ValidationError, KeyError, TypeError, AttributeError) as error:
            # The last line of a connection that was cut in the middle of it, or another program on that port.
            raise EngineUnavailable(f"What answers at {self.url} does not speak Ollama's protocol, or broke off.") from error

    def _refusal(self, status: int, text: str, model: str, continues: bool) -> EngineError:
        """Return what a refusal of the server means; -1 is the status of one in the middle of a stream."""
        told, low = text[:200], text.lower()
        if any(words in low for words in _TOO_LONG):
            # With what was said, it may still fit into the window of another pool's model.
            return (ContinuationRefused if continues else EngineRejected)(
                f"The message is too long for the model {model}: {told}. Send a shorter one."
            )
        if model and (status == httpx.codes.NOT_FOUND or ("model" in low and "not found" in low)):
            return EngineUnavailable(f"Ollama at {self.url} has no model {model}. Run `ollama pull {model}` there.")
        if status == httpx.codes.BAD_REQUEST and continues:
            return ContinuationRefused(
                f"The model {model} does not go on from what was said ({told}). Send the message again for a new answer."
            )
        if status == httpx.codes.BAD_REQUEST:
            return EngineRejected(f"Ollama does not take the request for {model or 'its facts'}: {told}")
        return EngineUnavailable(f"Ollama at {self.url} failed: {told}. Its own log says more.")
