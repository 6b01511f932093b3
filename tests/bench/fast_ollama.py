"""The Ollama of `make bench`: the protocol of `tests.support.ollama_server` without its faults, cheap enough to hold nobody up.

    python -m tests.bench.fast_ollama PORT

A reply has as many tokens as `num_predict` says, each a line of its own as in Ollama, encoded beforehand. It comes at once, all
its lines in one write, or after `POST /control {"tokens_per_second": N}` at that pace, a write for each.
"""

import asyncio
import dataclasses
import functools
import sys
from typing import cast

import orjson
import uvloop

MODEL = "llama3.2"
TOKEN = b" gull"
"""What every token of every reply begins with. They are not all the same: LiteLLM takes that for a model that repeats itself."""
_TEXTS = [f"{TOKEN.decode()}{letter}" for letter in "abcdefghij"]
_STAMP = "2026-01-01T00:00:00.000000Z"
_NDJSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_NO_LIMIT = 128


def _line(model: str, text: str, **last: object) -> bytes:
    message = {"role": "assistant", "content": text}
    return orjson.dumps({"model": model, "created_at": _STAMP, "message": message, "done": False, **last})


def _last(tokens: int) -> dict[str, object]:
    facts = {"total_duration": 1_000_000, "load_duration": 0, "prompt_eval_count": 400, "prompt_eval_duration": 0}
    return {"done": True, "done_reason": "length", **facts, "eval_count": tokens, "eval_duration": 1_000_000}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@functools.cache
def _lines(model: str, tokens: int) -> tuple[bytes, ...]:
    """Return a streamed reply, chunk by chunk, the last with the end of the response."""
    each = [_chunk(_line(model, text) + b"\n") for text in _TEXTS]
    return (*(each[at % len(each)] for at in range(tokens)), _chunk(_line(model, "", **_last(tokens)) + b"\n") + b"0\r\n\r\n")


@functools.cache
def _at_once(model: str, tokens: int) -> bytes:
    return _NDJSON + b"".join(_lines(model, tokens))


@functools.cache
def _whole(model: str, tokens: int) -> bytes:
    return _document(_line(model, "".join(_TEXTS[at % len(_TEXTS)] for at in range(tokens)), **_last(tokens)))


def _document(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@dataclasses.dataclass
class Pace:
    """How fast replies come, all of them; 0: at once."""

    tokens_per_second: float = 0.0


class Connection(asyncio.Protocol):
    """One client. Requests come one after the other, as no client of Ollama sends the next before it has its answer."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._saying: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._saying is not None:
            self._saying.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, length = head.lower().partition(b"\r\ncontent-length:")
        size = int(length.partition(b"\r\n")[0]) if length else 0
        if len(rest) < size:
            return
        self._buffer = rest[size:]
        self._answer(head.split(b" ", 2)[1], orjson.loads(rest[:size]) if size else {})

    def _answer(self, path: bytes, body: dict[str, object]) -> None:
        assert self._transport is not None
        match path:
            case b"/api/chat":
                self._chat(str(body["model"]), body)
            case b"/control":
                self._pace.tokens_per_second = float(str(body["tokens_per_second"]))
                self._transport.write(_document(b"{}"))
            case _ if path in _FACTS:
                self._transport.write(_document(orjson.dumps(_FACTS[path])))
            case _:
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

    def _chat(self, model: str, body: dict[str, object]) -> None:
        assert self._transport is not None
        options = body.get("options")
        tokens = int(options.get("num_predict") or _NO_LIMIT) if isinstance(options, dict) else _NO_LIMIT
        if not body.get("messages"):
            self._transport.write(_document(_line(model, "", done=True, done_reason="load")))
        elif body.get("_debug_render_only"):
            rendered = {"rendered_template": cast(list[dict[str, str]], body["messages"])[-1]["content"]}
            self._transport.write(_document(orjson.dumps({"model": model, "_debug_info": rendered})))
        elif body.get("stream") is False:
            self._transport.write(_whole(model, tokens))
        elif self._pace.tokens_per_second:
            self._saying = asyncio.ensure_future(self._say(_lines(model, tokens)))
        else:
            self._transport.write(_at_once(model, tokens))

    async def _say(self, lines: tuple[bytes, ...]) -> None:
        assert self._transport is not None
        loop, per_second = asyncio.get_running_loop(), self._pace.tokens_per_second
        due, head = loop.time(), _NDJSON
        for line in lines:
            due += 1 / per_second  # not from now on: what a busy machine delays is caught up with
            await asyncio.sleep(due - loop.time())
            self._transport.write(head + line)
            head = b""


def _about(name: str) -> dict[str, object]:
    return {"name": name, "model": name, "size": 1, "digest": "0" * 64, "modified_at": _STAMP, "details": {}}


_MODELS = [f"{MODEL}:latest"]
_FACTS: dict[bytes, object] = {
    b"/api/version": {"version": "0.12.6"},
    b"/api/tags": {"models": [_about(name) for name in _MODELS]},
    b"/api/ps": {"models": [{**_about(name), "expires_at": "2126-01-01T00:00:00Z", "size_vram": 1} for name in _MODELS]},
    b"/api/show": {
        "template": "", "details": {}, "capabilities": ["completion"],
        "model_info": {"general.architecture": "stand-in", "stand-in.context_length": 131_072},
    },
}  # fmt: skip


async def _serve(port: int) -> None:
    pace = Pace()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pace), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
