"""A stand-in for servers that speak OpenAI's protocol: a real HTTP server, without a model. Also a program of its own:

    python -m tests.support.openai_server --port 8080 --model qwen2.5 --continues vllm

It shares what it says, how it fails and how it is controlled with the stand-in for Ollama (`ollama_replies`, `ollama_faults`,
`ollama_http`); only the protocol is another one. As llama.cpp's server it goes on from an assistant message at the end
(`trailing`), and refuses that to a model that thinks; as vLLM's only where it is told to (`vllm`); `never`: the message is an
earlier reply.
"""

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from tests.support import ollama_replies as replies
from tests.support.ollama_faults import Counts, Faults
from tests.support.ollama_http import Exchange, HttpServer

Continues = Literal["trailing", "vllm", "never"]


@dataclass
class OpenAIFaults(Faults):
    """What is wrong with the server. `prefix` "restart": it repeats what was said and goes on. Further ones of this protocol:"""

    anew_after: int | None = None
    """A prefix is taken for an earlier reply: after so many of its tokens the answer is another one. 0: from the beginning."""
    body: object = None
    """What is sent with `status` instead of an error in the usual form."""
    finish: str = ""
    """The reason of the end instead of `stop` or `length`."""
    no_usage: bool = False
    """The counts are never told."""
    hang_after_end: bool = False
    """After the reason of the end nothing more comes, and the connection stays open."""
    comments: bool = False
    """Comments come between the pieces, as from gateways that keep a connection open."""
    error_form: Literal["data", "error", "string"] = "data"
    """How an error comes in a stream: as an object, under `error:` as from old llama.cpp servers, as a string."""


class OpenAIServer:
    """The stand-in. Use as `async with`; `kill` and `start` let it die and come back on the same port."""

    def __init__(
        self,
        *models: str,
        thinking: Sequence[str] = (),
        continues: Continues = "trailing",
        key: str = "",
        context_length: int = 131_072,
        tells_length: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Have `models` and the `thinking` ones. `tells_length`: the context length is in the list of models, as vLLM has it."""
        self.faults, self.counts = OpenAIFaults(), Counts()
        self.models, self.thinking = [*models, *thinking], set(thinking)
        self.continues, self.key = continues, key
        self.context_length, self.tells_length = context_length, tells_length
        self._http = HttpServer(self._handle, host=host, port=port)
        self._routes: dict[tuple[str, str], Callable[[Exchange], Any]] = {
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
            ("GET", "/control"): lambda request: request.answer(self.counts.shown()),
            ("POST", "/control"): self._control,
        }

    @property
    def url(self) -> str:
        return f"{self._http.url}/v1"

    async def start(self) -> None:
        await self._http.start()

    async def kill(self) -> None:
        """Die: connections are reset."""
        await self._http.kill()

    async def __aenter__(self) -> "OpenAIServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def _handle(self, request: Exchange) -> None:
        self.counts.requests[request.path] += 1
        request.chunk_bytes = self.faults.chunk_bytes
        if request.path != "/control":
            if self.faults.hang:
                await asyncio.Event().wait()
            if self.faults.status:
                body = self.faults.body
                return await request.answer(
                    _error(self.faults.status, "the server says no") if body is None else body, self.faults.status
                )
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return await request.answer(_error(401, "Invalid API Key"), 401)
        route = self._routes.get((request.method, request.path))
        if route is None:
            return await request.answer({"detail": "Not Found"}, 404)
        await route(request)

    async def _control(self, request: Exchange) -> None:
        try:
            self.faults.change(request.body)
        except ValueError as error:
            return await request.answer(_error(400, str(error)), 400)
        await request.answer(self.counts.shown())

    async def _models(self, request: Exchange) -> None:
        length = {"max_model_len": self.context_length} if self.tells_length else {}
        await request.answer({"object": "list", "data": [{"id": name, "object": "model", **length} for name in self.models]})

    async def _chat(self, request: Exchange) -> None:
        body, messages = request.body, list(request.body["messages"])
        model = str(body["model"])
        if model not in self.models:
            return await request.answer(_error(404, f"The model `{model}` does not exist."), 404)
        template = body.get("chat_template_kwargs") or {}
        thinks = model in self.thinking and template.get("enable_thinking") is not False
        told = bool(body.get("continue_final_message"))
        if told and body.get("add_generation_prompt", True):
            return await request.answer(_error(400, "Cannot set both continue_final_message and add_generation_prompt"), 400)
        said = ""
        if messages[-1]["role"] == "assistant" and (self.continues == "trailing" or (self.continues == "vllm" and told)):
            said = str(messages.pop()["content"])
            if self.faults.prefix == "refuse" or (thinks and self.continues == "trailing"):
                return await request.answer(_error(400, "Assistant response prefill is incompatible with enable_thinking."), 400)
        asked = replies.count(messages) + len(replies.tokens_of(said))
        if asked > self.context_length:
            told_ = (
                f"request ({asked} tokens) exceeds the available context size ({self.context_length} tokens), try increasing it"
            )
            return await request.answer(_error(400, told_, "exceed_context_size_error"), 400)
        self.counts.chats.append(dict(body))
        with self.counts.living():
            await _Reply(
                self.faults, request, asked, replies.thoughts(messages) if thinks else [], self._tokens(model, messages, said)
            ).run()

    def _tokens(self, model: str, messages: list[Any], said: str) -> list[str]:
        after = self.faults.anew_after
        if said and after is not None:
            other = replies.reply(model, [*messages, {"role": "assistant", "content": "another one"}])
            return [*replies.rest(model, messages, "")[:after], *replies.tokens_of(" " + other if after else other)]
        return replies.rest(model, messages, "" if self.faults.prefix == "restart" else said)


class _Reply:
    """One reply, with all that can go wrong on the way."""

    def __init__(self, faults: OpenAIFaults, request: Exchange, asked: int, thoughts: list[str], tokens: list[str]) -> None:
        self._faults, self._request, self._asked = faults, request, asked
        self._thoughts, self._tokens, self._sent = thoughts, tokens, 0
        request.stream_type = "text/event-stream"

    async def run(self) -> None:
        request, faults = self._request, self._faults
        limit = int(request.body.get("max_tokens") or 1_000_000)
        await self._event({"role": "assistant", "content": None})
        for thought in self._thoughts[:limit]:
            await self._pace()
            await self._event({"reasoning_content": thought})
        allowed = max(0, limit - len(self._thoughts))
        for token in self._tokens[:allowed]:
            if await self._fails():
                return
            await self._pace()
            await self._event({"content": token})
            self._sent += 1
        if await self._fails():
            return
        await self._event({}, finish=faults.finish or ("length" if len(self._tokens) > allowed else "stop"))
        if faults.hang_after_end:
            await asyncio.Event().wait()
        if (request.body.get("stream_options") or {}).get("include_usage") and not faults.no_usage:
            counts = {"prompt_tokens": self._asked, "completion_tokens": self._sent + len(self._thoughts[:limit])}
            await self._data(json.dumps({"id": "c", "choices": [], "usage": counts}))
        await self._data("[DONE]")
        await request.end()

    async def _pace(self) -> None:
        speed = self._faults.tokens_per_second
        await asyncio.sleep(1 / speed if speed else 0)
        if self._faults.comments:
            await self._request.raw(b": still here\n\n")

    async def _fails(self) -> bool:
        """Fail as the faults say, if it is time to; say whether the stream is over."""
        faults, request, sent = self._faults, self._request, self._sent
        if sent == faults.hang_after:
            await asyncio.Event().wait()
        if sent == faults.close_after:
            request.break_off()
        if sent == faults.error_after:
            error = json.dumps(_error(faults.status or 500, faults.error))
            if faults.error_form == "error":
                await request.raw(f"error: {json.dumps(faults.error)}\n\n".encode())
            else:
                await self._data(error if faults.error_form == "data" else json.dumps({"error": faults.error}))
        elif sent == faults.split_line_after:
            await request.raw(b'data: {"id": "c", "choices": [{"index": 0, "delta": {"con')
        elif sent == faults.end_after:
            await self._data("[DONE]")
        else:
            return False
        await request.end()
        return True

    async def _event(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        model = self._request.body["model"]
        await self._data(
            json.dumps({"id": "c", "object": "chat.completion.chunk", "model": model, "choices": [choice]}, ensure_ascii=False)
        )

    async def _data(self, text: str) -> None:
        await self._request.raw(f"data: {text}\n\n".encode())


def _error(status: int, message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": kind}}


async def _serve(server: OpenAIServer) -> None:
    async with server:
        print(f"A stand-in for a server of OpenAI's protocol is at {server.url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for a server that speaks OpenAI's protocol.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model", action="append", default=[], help="a model that it has; may be given several times")
    parser.add_argument("--thinking", action="append", default=[], help="a model that thinks")
    parser.add_argument("--continues", choices=["trailing", "vllm", "never"], default="trailing")
    parser.add_argument("--key", default="", help="the key that it asks for")
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(
            _serve(
                OpenAIServer(
                    *given.model,
                    thinking=given.thinking,
                    continues=given.continues,
                    key=given.key,
                    host=given.host,
                    port=given.port,
                )
            )
        )


if __name__ == "__main__":
    main()
