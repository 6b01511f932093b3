"""A reply of an Ollama server, line by line: the one request that does not go through the `ollama` client.

The client reads a stream through httpx, chunk by chunk through nine generators, and makes a pydantic model of every line: about
six times the CPU of this (docs/decisions/0014-ollama-lines.md). aiohttp, which Ray brings, parses HTTP in C and gives all that
has come at once. Everything else that is asked of the server is rare, and the client's.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import httpx
import ollama
import orjson

from serve_app.chat.errors import EngineUnavailable


class Line(NamedTuple):
    """One line of a reply. The counts come with the last one, where the server tells them."""

    text: str
    thinking: str = ""
    done: bool = False
    reason: str = ""
    prompt_tokens: int | None = None
    tokens: int | None = None


class LineReader:
    """Asks one server for streamed replies. To be made where an event loop runs, and closed there."""

    def __init__(self, url: str, *, connect_s: float) -> None:
        """Open nothing yet; see `OllamaApi` for what is not heeded and not bounded."""
        self._url = url
        self._session = aiohttp.ClientSession(
            # The certificates that the client trusts.
            connector=aiohttp.TCPConnector(limit=0, ssl=httpx.create_ssl_context(trust_env=False) if _is_tls(url) else False),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json"},
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def read(self, body: Mapping[str, Any], *, first_s: float, silence_s: float) -> AsyncGenerator[list[Line], None]:
        """Yield the lines of a reply as they come: of one read together, never none. Closing it closes the connection.

        Raises:
            EngineUnavailable: nothing came for `first_s`, or later for `silence_s`.
            ollama.ResponseError: the server refuses; with status -1, it breaks off with an error.
            aiohttp.ClientError, ValueError, TypeError, AttributeError: it is away, breaks off, or is no Ollama.
        """
        response: aiohttp.ClientResponse | None = None
        limit, rest = first_s, b""
        try:
            while True:
                try:
                    async with asyncio.timeout(limit):
                        if response is None:
                            response = await self._ask(body)
                        data = await response.content.readany()
                except aiohttp.ConnectionTimeoutError:
                    raise
                except TimeoutError:
                    raise EngineUnavailable(
                        f"Ollama at {self._url} hangs: it said nothing for {limit:g} s. Restart it."
                    ) from None
                limit = silence_s
                *whole, rest = (rest + (data or b"\n")).split(b"\n")  # the last line need not have an end of its own
                lines, broken = _lines(whole)
                if lines:
                    if lines[-1].done:
                        await _read_the_end(response)
                    yield lines
                if broken is not None:
                    raise broken
                if not data:
                    return
        finally:
            if response is not None:
                response.close()  # one that was read to its end has given its connection back already

    async def _ask(self, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        response = await self._session.post(f"{self._url}/api/chat", data=orjson.dumps(body), allow_redirects=False)
        if response.status != httpx.codes.OK:
            async with response:
                raise ollama.ResponseError(await response.text(errors="replace"), response.status)
        return response


async def _read_the_end(response: aiohttp.ClientResponse) -> None:
    """Read what comes after the last line: nothing, but without having seen that, the connection could not be used again.

    A moment is enough, and no failure matters: the reply is whole.
    """
    with contextlib.suppress(TimeoutError, OSError, aiohttp.ClientError):
        async with asyncio.timeout(0.2):
            while await response.content.readany():
                pass


def _lines(whole: Sequence[bytes]) -> tuple[list[Line], Exception | None]:
    """Return what these lines say, up to one that says something else, and what is wrong with that: what was said stands."""
    lines = []
    try:
        for raw in whole:
            if raw:
                lines.append(_line(raw))
                if lines[-1].done:
                    break
    except (ollama.ResponseError, ValueError, LookupError, TypeError, AttributeError) as error:
        return lines, error
    return lines, None


def _line(raw: bytes) -> Line:
    try:
        told = orjson.loads(raw)
    except orjson.JSONDecodeError:
        told = json.loads(raw.decode(errors="replace"))  # takes half a surrogate pair, and bytes that are no UTF-8
    if "error" in told:
        raise ollama.ResponseError(str(told["error"]))
    message, done = told["message"], told.get("done") is True
    text, thinking = message.get("content") or "", message.get("thinking") or ""
    if not isinstance(text, str) or not isinstance(thinking, str):
        raise TypeError("no message of Ollama's")
    if not done:
        return Line(text, thinking)
    prompt_tokens, tokens = (n if isinstance(n := told.get(name), int) else None for name in ("prompt_eval_count", "eval_count"))
    return Line(text, thinking, done, str(told.get("done_reason") or ""), prompt_tokens, tokens)


def _is_tls(url: str) -> bool:
    return url.startswith("https:")
