"""The engine `ollama`: the models of an Ollama server, one server per node, through the `ollama` client.

*Start.* Server and version are checked, models that are missing are pulled (`status.note` and the log say how far it is), and the
first model is loaded. It takes as long as something is seen to move, never longer: whoever waits for `start` waits for a usable
engine or for an error. What was pulled of a model stays; the next start goes on from there.

*Continuation* (law 5). What was said goes to the server as a trailing assistant message. Ollama renders it as the open end of
the prompt, and the model says only what follows. That hangs on the model's template, so the server is asked once per model
how a prompt like that ends (`Ending`). Where it ends with exactly the text, the seam is exact; where the template drops
whitespace there, that whitespace is taken off the continuation. Where the server does not tell, because it is too old, the
continuation is looked at.

*The second path.* Some models do not go on from a prefix: their template closes it, the server refuses it, or they think
first and then begin anew. A model that can think is therefore told not to, for a continuation. What still refuses, thinks, or
says again what was said, ends the attempt with `ContinuationRefused`: an engine of another pool goes on, or the turn ends as
failed and what was said is kept. Nothing is ever repeated, nor contradicted by a second reply.

*Thinking* is no part of a reply. It is dropped, but each piece of it is yielded without text, so that nobody takes it for
silence.

*Stopping.* Closing the generator closes the connection, and Ollama stops generating then.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, EngineStatus, Prefix, Prompt
from serve_app.chat.errors import ContinuationRefused, EngineUnavailable
from serve_app.chat.events import Usage
from serve_app.chat.options import Options
from serve_app.engines.ollama_config import OllamaConfig
from serve_app.engines.ollama_continuation import Ending, Seam
from serve_app.engines.ollama_models import OllamaModels
from serve_app.engines.ollama_request import Request, build_request
from serve_app.engines.token_estimate import TokenEstimate, least_tokens

if TYPE_CHECKING:
    from serve_app.engines.ollama_lines import Line

__all__ = ["OllamaConfig", "OllamaEngine"]


class OllamaEngine(Engine):
    """Answers with a model of an Ollama server. Any number of replies may be asked for at once; the server makes `slots`."""

    def __init__(self, config: OllamaConfig, *, url: str = "http://127.0.0.1:11434") -> None:
        """Keep `config`; `url` is the node's own server, for a configuration that names none."""
        self._config = config
        named = config.url or url
        self._url = named if "://" in named else f"http://{named}"
        self._info = EngineInfo(kind="ollama", model=config.model, language_model=True)
        self._models = OllamaModels(config, self._url)
        self._estimates = {name: TokenEstimate() for name in self._models.names}
        self._busy = 0

    @property
    def info(self) -> EngineInfo:
        """What this engine is, with the model that answers where none is named."""
        return self._info

    @property
    def status(self) -> EngineStatus:
        """Which of its models are in the server's memory, as far as last seen, and what it is at."""
        return EngineStatus(self._models.loaded, self._busy, self._config.slots, self._models.note)

    async def start(self) -> None:
        """Return when the server has all models and the first one is loaded.

        Raises:
            EngineUnavailable: the server is away, too old, or hangs; or a model is missing and cannot be had.
        """
        await self._models.start()

    async def check(self) -> None:
        """Return if the server answers and still has all models; where none is loaded any more, it begins to load the first.

        Raises:
            EngineUnavailable: it does not, or `start` has not come to its end.
        """
        await self._models.check()

    async def close(self) -> None:
        """Close the connections. The models stay loaded: the server is the node's, and others may use it."""
        await self._models.close()

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        """Yield what the model says after `continue_from` as it comes, a piece for each of the server's; the last has the usage.

        Pieces without text are signs of life: the model thinks, or it is not clear yet whether it goes on or begins anew.

        Raises:
            EngineUnavailable: the server is away, hangs, broke off, or has lost the model.
            ModelNotServed: the model is none of this engine's.
            EngineRejected: the message is too long, or the server does not take the request.
            ContinuationRefused: the model does not go on from `continue_from`.
        """
        models, said = self._models, continue_from.text
        model = models.chosen(prompt)
        estimate, window = self._estimates[model], await models.window(model)
        request = build_request(
            prompt, options, continue_from, window=window, num_predict=self._config.num_predict, estimate=estimate
        )
        if request is None:
            yield EnginePiece("", usage=Usage(prompt_tokens=estimate.prompt(prompt), completion_tokens=least_tokens(said)))
            return
        ending = await models.ending(model) if said else Ending.OPEN
        if ending is Ending.CLOSED:
            raise ContinuationRefused(f"{model} cannot go on from what was said. Send the message again for a new answer.")
        seam, tokens = Seam(said, ending), 0
        with self._counted():
            async with aclosing(self._lines(model, request, continues=bool(said))) as lines:
                async for line in lines:
                    if line.thinking and said:
                        raise ContinuationRefused(
                            f"{model} began to think anew instead of going on. Send the message again for a new answer."
                        )
                    tokens += bool(line.text or line.thinking)
                    text = seam.feed(line.text) if line.text else ""
                    if line.done:
                        text, usage = text + seam.end(), _usage(line, request, said, tokens, estimate)
                        estimate.learn(request.prompt, said, line.prompt_tokens)
                        yield EnginePiece(text, usage=usage)
                        return
                    yield EnginePiece(text)

    async def _lines(self, model: str, request: Request, *, continues: bool) -> AsyncGenerator["Line", None]:
        """Yield the lines of a reply, the last one a real end."""
        config, models = self._config, self._models
        think = (False if continues else config.think) if await models.thinks(model) else None
        lines = models.api.chat(
            model,
            request,
            think=think,
            keep_alive=config.keep_alive_s,
            first_s=config.first_line_s,
            silence_s=config.silence_s,
        )
        seen = False
        async with aclosing(lines):
            async for batch in lines:
                if (reason := batch[-1].reason) in ("load", "unload"):
                    raise EngineUnavailable(f"Ollama at {self._url} did not answer but only {reason}ed {model}. Send it again.")
                if not seen:
                    models.seen_loaded(model)
                    seen = True
                for line in batch:
                    yield line

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1


def _usage(line: "Line", request: Request, said: str, tokens: int, estimate: TokenEstimate) -> Usage:
    """Return the usage of a whole reply, `said` a part of it: as the server counts, or estimated where it does not tell."""
    before = least_tokens(said)
    prompt = line.prompt_tokens - before if line.prompt_tokens else estimate.prompt(request.prompt)
    return Usage(prompt_tokens=max(0, prompt), completion_tokens=(line.tokens or tokens) + before)
