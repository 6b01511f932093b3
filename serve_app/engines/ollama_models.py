"""Keeps the models of an Ollama server ready: there, loaded, and known for what they can do. Generates nothing itself."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from serve_app.chat.engine import Prompt
from serve_app.chat.errors import EngineError, EngineUnavailable, ModelNotServed
from serve_app.engines.ollama_config import OllamaConfig
from serve_app.engines.ollama_continuation import Ending
from serve_app.engines.ollama_request import full_name

if TYPE_CHECKING:
    from serve_app.engines.ollama_api import ModelFacts, OllamaApi

log = logging.getLogger(__name__)
OLDEST = (0, 9, 0)
"""The first version that can be told not to think, without which no thinking model goes on from what was said."""


class OllamaModels:
    """The models that one engine speaks with, on one server. `note` says what is being done for them, or what is wrong."""

    def __init__(self, config: OllamaConfig, url: str) -> None:
        """Keep both; nothing is asked before `start`."""
        self.note = ""
        self._config, self._url = config, url
        self._names = {full_name(name): name for name in (config.model, *config.models)}
        self._api: OllamaApi | None = None
        self._starting = asyncio.Lock()
        self._ready = False
        self._version = ""
        self._loaded: frozenset[str] = frozenset()
        self._facts: dict[str, ModelFacts] = {}
        self._endings: dict[str, Ending] = {}
        self._reloading: asyncio.Task[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, as configured, the one that answers by default first."""
        return tuple(self._names.values())

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those in the server's memory, as far as last seen."""
        return tuple(name for full, name in self._names.items() if full in self._loaded)

    @property
    def api(self) -> "OllamaApi":
        """The way to the server.

        Raises:
            EngineUnavailable: `start` has not come to its end.
        """
        if self._api is None or not self._ready:
            raise EngineUnavailable(self.note or "The engine is not started, or is closed. Start it first.")
        return self._api

    async def start(self) -> None:
        """Return when the server has all models and the first one is loaded.

        Raises:
            EngineUnavailable: the server is away, too old, or hangs; or a model is missing and cannot be had.
        """
        async with self._starting:
            if self._ready:
                return
            from serve_app.engines.ollama_api import OllamaApi

            if self._api is None:
                self._api = OllamaApi(self._url, connect_s=self._config.connect_s)
            try:
                await self._prepare(self._api)
            except EngineError as error:
                self.note = error.message
                raise
            self.note, self._ready = "", True
            await self.ending(self._config.model)

    async def check(self) -> None:
        """Return if the server answers and has all models; where none of them is loaded any more, begin to load the first.

        Raises:
            EngineUnavailable: it does not, or it has lost one.
        """
        api, limit = self.api, self._config.check_s
        try:
            async with _within(limit, f"Ollama at {self._url} hangs: no answer to a check within {limit:g} s. Restart it."):
                version, installed, loaded = await api.version(), await api.installed(), await api.loaded()
            if missing := [name for full, name in self._names.items() if full not in installed]:
                lost = ", ".join(missing)
                raise EngineUnavailable(f"Ollama at {self._url} has lost {lost}. Run `ollama pull {missing[0]}` there.")
        except EngineError as error:
            self._loaded, self.note = frozenset(), error.message
            raise
        self._loaded = frozenset(loaded)
        if version != self._version:  # another server, which may render other prompts
            self._version = version
            self._facts.clear()
            self._endings.clear()
        if self._reloading is None or self._reloading.done():
            self.note = ""
            if not self.loaded:
                self._reloading = asyncio.create_task(self._reload(api), name="ollama-reload")

    async def close(self) -> None:
        """Close the connections. The models stay loaded: the server is the node's, and others may use it."""
        self._ready = False
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
        api, self._api = self._api, None
        if api is not None:
            await api.close()

    def chosen(self, prompt: Prompt) -> str:
        """Return the model that is to answer `prompt`.

        Raises:
            ModelNotServed: it is none of these.
        """
        asked = prompt.model or self._config.model
        if (name := self._names.get(full_name(asked))) is None:
            has = ", ".join(self.names)
            raise ModelNotServed(f"This pool has no model {asked}. It has {has}; more go into `models` of its configuration.")
        return name

    def seen_loaded(self, model: str) -> None:
        """Note that a model answers, so it is loaded."""
        self._loaded |= {full_name(model)}

    async def thinks(self, model: str) -> bool:
        """Say whether a model can think before it answers."""
        return (await self._facts_of(self.api, model)).thinks

    async def window(self, model: str) -> int:
        """Return the context window of a model, in tokens: the configured one, or its own where that is smaller."""
        return await self._window(self.api, model)

    async def ending(self, model: str) -> Ending:
        """Say how the prompt of a model ends where it is to go on from a beginning; asked once per model and server."""
        if (known := self._endings.get(model)) is not None:
            return known
        api, config = self.api, self._config
        window, think = await self._window(api, model), False if await self.thinks(model) else None
        try:
            async with _within(config.first_line_s, f"Ollama at {self._url} hangs."):
                ending = await api.ending(model, num_ctx=window, keep_alive=config.keep_alive_s, think=think)
        except EngineError as error:  # what is wrong with the server, the next reply will say
            log.warning("How %s goes on from what was said could not be asked: %s", model, error.message)
            return Ending.UNKNOWN
        if ending is not Ending.OPEN:
            log.info("Where %s is to go on from what was said, its prompt ends: %s.", model, ending)
        self._endings[model] = ending
        return ending

    async def _prepare(self, api: "OllamaApi") -> None:
        async with _within(self._config.check_s, f"Ollama at {self._url} hangs: it does not tell its version. Restart it."):
            self._version, installed = await api.version(), await api.installed()
        if (found := _numbers(self._version)) and found < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise EngineUnavailable(f"Ollama {self._version} at {self._url} is too old: install {wanted} or a later one there.")
        log.info("Ollama %s at %s has %s.", self._version, self._url, ", ".join(sorted(installed)) or "no models")
        for full, name in self._names.items():
            if full not in installed:
                await self._pull(api, name)
        await self._load(api)

    async def _pull(self, api: "OllamaApi", model: str) -> None:
        """Fetch a model for as long as something is seen to come, telling how far it is: in the log at every tenth."""
        if not self._config.pull:
            raise EngineUnavailable(
                f"Ollama at {self._url} has no model {model}. Run `ollama pull {model}` there, or set pull: true."
            )
        self.note = f"pulling {model}"
        log.info("Ollama at %s lacks %s: pulling it.", self._url, model)
        layers: dict[str, tuple[int, int]] = {}
        tenth, status = 0, ""
        try:
            async with aclosing(api.pull(model, silence_s=self._config.silence_s)) as lines:
                async for line in lines:
                    status = line.status
                    if not line.total:
                        continue
                    layers[line.layer] = (line.completed, line.total)
                    percent = 100 * sum(done for done, _ in layers.values()) // sum(total for _, total in layers.values())
                    self.note = f"pulling {model}: {percent} %"
                    if percent // 10 > tenth:
                        tenth = percent // 10
                        log.info("Pulling %s: %d %%.", model, percent)
        except EngineError as error:
            raise EngineUnavailable(f"{model} could not be pulled: {error.message}") from error
        if status != "success":
            raise EngineUnavailable(
                f"The pull of {model} broke off ({status or 'nothing came'}). It goes on with the next start."
            )
        log.info("Pulled %s.", model)

    async def _load(self, api: "OllamaApi") -> None:
        model, config = self._config.model, self._config
        self.note = f"loading {model}"
        async with _within(
            config.load_s, f"Ollama at {self._url} did not load {model} within {config.load_s:g} s. Its log says why."
        ):
            await api.load(model, num_ctx=await self._window(api, model), keep_alive=config.keep_alive_s)
            self._loaded = frozenset(await api.loaded())
        self.note = ""

    async def _reload(self, api: "OllamaApi") -> None:
        log.info("Ollama at %s no longer holds %s: loading it.", self._url, self._config.model)
        try:
            await self._load(api)
        except EngineError as error:
            log.warning("%s", error.message)
            self.note = error.message

    async def _window(self, api: "OllamaApi", model: str) -> int:
        own = (await self._facts_of(api, model)).context_length
        return min(self._config.context_window, own) if own else self._config.context_window

    async def _facts_of(self, api: "OllamaApi", model: str) -> "ModelFacts":
        if (known := self._facts.get(model)) is not None:
            return known
        async with _within(self._config.check_s, f"Ollama at {self._url} hangs: it tells nothing of {model}. Restart it."):
            facts = await api.facts(model)
        if 0 < facts.context_length < self._config.context_window:
            log.warning(
                "%s was made for %d tokens: its window is that instead of the configured one.", model, facts.context_length
            )
        self._facts[model] = facts
        return facts


@contextlib.asynccontextmanager
async def _within(seconds: float, message: str) -> AsyncGenerator[None, None]:
    """Bound what is inside.

    Raises:
        EngineUnavailable: it took longer, with `message`.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise EngineUnavailable(message) from None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version; nothing where there are none, or for `0.0.0`, which a server built by hand says."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    numbers = tuple(map(int, found.groups())) if found else ()
    return numbers if any(numbers) else ()
