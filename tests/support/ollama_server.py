"""A stand-in for Ollama: a real HTTP server that speaks its published protocol, without a model. Also a program of its own:

    python -m tests.support.ollama_server --port 11434 --model llama3.2 --thinking qwen3

What it says is known to the letter (`tests.support.ollama_replies`), what is wrong with it can be chosen (`ollama_faults`):
in the same process through `faults` and `counts`, from outside with `GET /control` and `POST /control {"hang_after": 5}`.

As in Ollama: a prompt that is longer than `num_ctx` loses its oldest messages, without a word, but never the system prompt or the
last message; a model is loaded anew where `num_ctx` changes; a thinking model thinks unless told not to; with `parallel`, as many
replies are made at a time, and further ones wait.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.ollama_chat import Reply, now, render
from tests.support.ollama_faults import Counts, Faults
from tests.support.ollama_http import Exchange, HttpServer

DEFAULT_NUM_CTX = 4_096
FOREVER = timedelta(days=36_500)


def full(name: str) -> str:
    """Return a model's name with its tag, `latest` where it has none."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class OllamaServer:
    """The stand-in. Use as `async with`; `kill` and `start` let it die and come back on the same port."""

    def __init__(
        self,
        *models: str,
        thinking: Sequence[str] = (),
        library: Sequence[str] = (),
        version: str = "0.12.6",
        context_length: int = 131_072,
        parallel: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Have `models` and the `thinking` ones; those of the `library` can be pulled. `parallel`: 0 for any number."""
        self.faults, self.counts = Faults(), Counts()
        self.models = [full(name) for name in (*models, *thinking)]
        self.thinking = {full(name) for name in thinking}
        self.library = {full(name) for name in library}
        self.version, self.context_length = version, context_length
        self.sizes: dict[str, int] = {}
        """Bytes of a model, by its full name, where that matters."""
        self.embedding: set[str] = set()
        """Full names of those that cannot chat."""
        self.loaded: dict[str, tuple[int, datetime]] = {}
        self._slots = asyncio.Semaphore(parallel) if parallel else None
        self._loading = asyncio.Lock()
        self._http = HttpServer(self._handle, host=host, port=port)
        self._routes: dict[tuple[str, str], Callable[[Exchange], Any]] = {
            ("GET", "/api/version"): lambda request: request.answer({"version": self.version}),
            ("GET", "/api/tags"): lambda request: request.answer({"models": [self._about(name) for name in self.models]}),
            ("GET", "/api/ps"): self._ps,
            ("POST", "/api/show"): self._show,
            ("POST", "/api/pull"): self._pull,
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("GET", "/control"): lambda request: request.answer(self.counts.shown()),
            ("POST", "/control"): self._control,
        }

    @property
    def url(self) -> str:
        return self._http.url

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return self._http.accepted

    async def start(self) -> None:
        await self._http.start()

    async def kill(self) -> None:
        """Die: connections are reset, what was loaded is no longer."""
        await self._http.kill()
        self.loaded.clear()

    async def __aenter__(self) -> "OllamaServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    def remove(self, name: str) -> None:
        """Lose a model, as with `ollama rm`."""
        self.models.remove(full(name))
        self.loaded.pop(full(name), None)

    async def _handle(self, request: Exchange) -> None:
        self.counts.requests[request.path] += 1
        request.chunk_bytes = self.faults.chunk_bytes
        controlling = request.path == "/control"
        if self.faults.hang and not controlling:
            await asyncio.Event().wait()
        if self.faults.status and not controlling:
            return await request.fail(self.faults.status, "the server says no")
        route = self._routes.get((request.method, request.path))
        if route is None:
            return await request.fail(404, "page not found")
        await route(request)

    async def _control(self, request: Exchange) -> None:
        try:
            self.faults.change(request.body)
        except ValueError as error:
            return await request.fail(400, str(error))
        await request.answer(self.counts.shown())

    def _about(self, name: str) -> dict[str, Any]:
        details = {"parent_model": "", "format": "gguf", "family": "stand-in", "families": ["stand-in"], "parameter_size": "0B"}
        return {
            "name": name,
            "model": name,
            "size": self.sizes.get(name, 1_000),
            "digest": "0" * 64,
            "modified_at": now(),
            "details": details,
        }

    async def _ps(self, request: Exchange) -> None:
        now = datetime.now(UTC)
        self.loaded = {name: (ctx, until) for name, (ctx, until) in self.loaded.items() if until > now}
        found = [
            {**self._about(name), "expires_at": until.isoformat(), "size_vram": 1_000, "context_length": ctx}
            for name, (ctx, until) in self.loaded.items()
        ]
        await request.answer({"models": found})

    async def _show(self, request: Exchange) -> None:
        name = full(str(request.body.get("model", "")))
        if name not in self.models:
            return await request.fail(404, f"model '{request.body.get('model')}' not found")
        capabilities = ["embedding"] if name in self.embedding else ["completion"]
        capabilities += ["thinking"] if name in self.thinking else []
        info = {"general.architecture": "stand-in", "stand-in.context_length": self.context_length}
        await request.answer({"template": "", "details": {}, "model_info": info, "capabilities": capabilities})

    async def _pull(self, request: Exchange) -> None:
        name, faults, size = full(str(request.body["model"])), self.faults, 2_000_000_000
        await request.line({"status": "pulling manifest"})
        if name not in self.library or faults.pull_error:
            await request.line({"error": faults.pull_error or "pull model manifest: file does not exist"})
            return await request.end()
        for step in range(faults.pull_steps + 1):
            if step == faults.pull_hangs_at:
                await asyncio.Event().wait()
            done = {"completed": size * step // faults.pull_steps} if step else {}
            await request.line({"status": "pulling 633fc5be925f", "digest": "sha256:633f", "total": size, **done})
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            await request.line({"status": status})
        self.models.append(name)
        await request.end()

    async def _generate(self, request: Exchange) -> None:
        """Load or unload a model; nothing else is asked of this endpoint here."""
        await self._chat(request)

    async def _chat(self, request: Exchange) -> None:
        body, faults = request.body, self.faults
        name, messages = full(str(body.get("model", ""))), list(body.get("messages") or [])
        if name not in self.models:
            return await request.fail(404, f"model '{body.get('model')}' not found")
        if body.get("think") and name not in self.thinking:
            return await request.fail(400, f'"{body["model"]}" does not support thinking')
        empty = {"model": body["model"], "created_at": now(), "message": {"role": "assistant", "content": ""}, "response": ""}
        if not messages and body.get("keep_alive") == 0:
            self.loaded.pop(name, None)
            return await request.answer({**empty, "done": True, "done_reason": "unload"})
        if faults.load_error:
            return await request.fail(500, faults.load_error)
        num_ctx = int((body.get("options") or {}).get("num_ctx", DEFAULT_NUM_CTX))
        await self._load(name, num_ctx, body.get("keep_alive", "5m"))
        if not messages:
            return await request.answer({**empty, "done": True, "done_reason": "load"})
        if body.get("_debug_render_only") and faults.renders:
            return await request.answer({**empty, "done": False, "_debug_info": {"rendered_template": render(messages, faults)}})
        self.counts.chats.append(dict(body))
        async with self._slot():
            await Reply(faults, self.counts, request, name, messages, num_ctx, thinking=name in self.thinking).run()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Count a reply while the server is at it, once it has a slot."""
        if self._slots is not None:
            await self._slots.acquire()
        try:
            with self.counts.living():
                yield
        finally:
            if self._slots is not None:
                asyncio.get_running_loop().call_later(self.faults.slot_kept_s, self._slots.release)

    async def _load(self, name: str, num_ctx: int, keep_alive: object) -> None:
        async with self._loading:
            if name not in self.loaded or self.loaded[name][0] != num_ctx:
                await asyncio.sleep(self.faults.load_s)
                self.counts.loads[name] += 1
            self.loaded[name] = (num_ctx, datetime.now(UTC) + _duration(keep_alive))


def _duration(value: object) -> timedelta:
    """Read a `keep_alive`: seconds or a duration like `5m`; a negative one is for ever."""
    if isinstance(value, str) and value[-1:] in "smh":
        seconds = float(value[:-1]) * {"s": 1, "m": 60, "h": 3_600}[value[-1]]
    else:
        seconds = float(str(value))
    return FOREVER if seconds < 0 else timedelta(seconds=seconds)


async def _serve(arguments: argparse.Namespace) -> None:
    models = arguments.model or ([] if arguments.thinking else ["llama3.2"])
    server = OllamaServer(
        *models,
        thinking=arguments.thinking,
        library=arguments.library,
        parallel=arguments.parallel,
        host=arguments.host,
        port=arguments.port,
    )
    server.faults.tokens_per_second = arguments.tokens_per_second
    async with server:
        print(f"a stand-in for Ollama on {server.url}, with {', '.join(server.models)}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A stand-in for Ollama, without a model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11_434)
    parser.add_argument("--model", action="append", default=[], help="a model that it has (repeat for several)")
    parser.add_argument("--thinking", action="append", default=[], help="the same, and it thinks")
    parser.add_argument("--library", action="append", default=[], help="a model that can be pulled")
    parser.add_argument("--parallel", type=int, default=0, help="replies at a time; 0: any number")
    parser.add_argument("--tokens-per-second", type=float, default=None, help="speed of a reply; without it, at once")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))
