"""The engine `vllm`: a model on this machine's GPU, computed by vLLM's `AsyncLLM` inside the replica.

The prompt is the model's own chat template, filled with the personality's system prompt and the conversation. A reply goes on by
token ids: the ids in the log are put behind the prompt's, so at temperature 0 the rest is what it would have been, wherever the
log ends. Where they do not say the text that is logged, as after an attempt of another engine, it goes on by text: a good
continuation, but not to the letter, as the tokens of a text are not those it was made of. With a temperature the rest is another
sample of the same model. What text is given out, and with which ids, is the business of `serve_app.engines.token_text`.

Needs the extra `vllm`; nothing of it is imported before `start`. The processes behind it are the business of
`serve_app.engines.vllm_processes`.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, EngineStatus, Prefix, Prompt
from serve_app.chat.errors import EngineUnavailable, ModelNotServed
from serve_app.chat.events import Usage
from serve_app.chat.options import Options
from serve_app.chat.prompt import fit
from serve_app.engines.token_text import TokenText
from serve_app.engines.vllm_model import Tokens, VllmModel, load
from serve_app.engines.vllm_processes import EngineProcesses

log = logging.getLogger(__name__)

_CHECK_S = 5.0
"""Seconds that a health check may take; Serve allows ten."""


class VllmConfig(BaseModel):
    """How the vLLM engine runs. What is not named here goes into `engine_args`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm"] = Field("vllm", description="Tells the engines' configurations apart.")
    model: str = Field(min_length=1, description="Name of the model at its hub, or the folder that it lies in.")
    served_model_name: str = Field("", description="Name to show for it; empty: `model`. A folder's path tells users nothing.")
    max_model_len: int | None = Field(
        None,
        ge=64,
        description="Context window in tokens, prompt and reply together; null: what the model was made for. Smaller takes less "
        "memory for each conversation, so that more fit on the GPU at a time.",
    )
    max_num_seqs: int = Field(
        64,
        ge=1,
        description="Replies at a time; further ones wait. More of them are faster together and slower each. At least the "
        "deployment's max_ongoing_requests, or Serve sends more than can begin.",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="Numbers to compute with; auto: those of the model's files, 16 bits wide for most."
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the GPU's memory to take, weights and cache together. Less where something else lives there too.",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one copy of the model, for one that is too large.")
    enforce_eager: bool = Field(
        False,
        description="Compute without compiling first: starts in a fraction of the time, and generates more slowly ever after.",
    )
    max_tokens: int = Field(
        1_024, ge=1, description="Tokens of a reply where neither the request nor the personality says; bounds a rambling model."
    )
    stop: tuple[str, ...] = Field(
        (), description="Strings that end a reply and are not part of it; for models that do not end their turn by themselves."
    )
    chat_template_args: dict[str, Any] = Field(
        default_factory=dict, description="What the model's chat template asks for, like `enable_thinking: false`."
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of vLLM's AsyncEngineArgs, by their Python names."
    )
    start_timeout_s: float = Field(
        1_200, gt=0, description="Seconds that loading may take; a large model's first download takes minutes."
    )
    silence_timeout_s: float = Field(
        20,
        gt=0,
        description="Seconds between two tokens of a reply after which another replica goes on; where no reply got a token "
        "meanwhile, also while one waited for its first and gave up, the engine is tried out, and if it hangs Serve replaces its "
        "replica. (Its death is noticed at once.) Waiting for the first token is bounded by the pool's first_piece_timeout_s.",
    )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of vLLM's AsyncEngineArgs; what `engine_args` names has the last word."""
        ours = {"kind", "served_model_name", "max_tokens", "stop", "chat_template_args", "engine_args"}
        named = self.model_dump(exclude=ours | {"start_timeout_s", "silence_timeout_s"})
        return {"disable_log_stats": True, "enable_log_requests": False, **named, **self.engine_args}


class VllmEngine(Engine):
    """Answers with a model on this machine."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._info = EngineInfo(
            "vllm",
            config.served_model_name or config.model,
            language_model=True,
            continues_by="token_ids",
            hangs_alone=True,
        )
        self._processes = EngineProcesses()
        self._model: VllmModel | None = None
        self._busy = 0
        self._note = ""
        self._dead = False
        self._hangs = False
        self._spoke_at = 0.0
        self._waited_since: float | None = None
        self._waits: set[asyncio.Timeout] = set()

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    @property
    def status(self) -> EngineStatus:
        """Its one model, once it is loaded, and the replies it is at."""
        models = (self._info.model,) if self._model is not None and not self._dead else ()
        return EngineStatus(models, self._busy, self._config.max_num_seqs, self._note)

    async def start(self) -> None:
        """Load the model, in a thread; first end what a killed predecessor left on this machine. Does nothing if it is loaded.

        Raises:
            EngineUnavailable: vLLM is not installed, the model cannot be loaded, or it takes longer than `start_timeout_s`.
        """
        if self._model is not None:
            return
        self._note = f"loading {self._info.model}"
        work = asyncio.to_thread(load, self._config.arguments(), self._config.chat_template_args, self._processes)
        loading = asyncio.ensure_future(work)
        try:
            await asyncio.wait([loading], timeout=self._config.start_timeout_s)
            if not loading.done():
                raise EngineUnavailable(f"{self._info.model} was not loaded within {self._config.start_timeout_s:g} s.")
            model = loading.result()
            self._dead = self._hangs = False
            self._processes.watch(self._died)  # before it is tried out: whoever dies from then on is noticed
            await model.try_out()
            self._model = model
        finally:
            self._note = ""
            if self._model is None:
                self._processes.unwatch()
                # A thread cannot be cancelled: without its processes the loading fails by itself, or comes too late.
                loading.add_done_callback(_let_go)
                await asyncio.to_thread(self._processes.end)

    async def check(self) -> None:
        """Return if the engine's process lives and vLLM says that it is well; where it fell silent, if it makes a token now.

        A check must not generate; but an engine that nobody asks because it may hang could show in no other way that it does not.
        """
        model = self._ready()
        try:
            async with asyncio.timeout(_CHECK_S):
                await model.check()
        except TimeoutError as error:
            raise EngineUnavailable(f"The engine did not say within {_CHECK_S:g} s that it is well.") from error
        if self._hangs:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_S):
                    await model.try_out()
                    self._hangs = False
            if self._hangs:  # else it made a token meanwhile, for whomever
                raise EngineUnavailable(self._silence())

    async def close(self) -> None:
        """End the engine's processes; a reply that is under way fails."""
        model, self._model = self._model, None
        self._processes.unwatch()
        self._end_waiting()
        await asyncio.to_thread(self._processes.end, model.shutdown if model is not None else lambda: None)

    def _died(self) -> None:
        log.error("The process of the engine %s is gone.", self._info.model)
        self._dead = True
        self._end_waiting()

    def _end_waiting(self) -> None:
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    def _ready(self) -> VllmModel:
        if self._model is None:
            raise EngineUnavailable("The model is not loaded.")
        if self._dead:
            raise EngineUnavailable("The engine's process is gone.")
        return self._model

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        """Yield the rest of the reply as the tokens come; a last piece carries the usage.

        History that does not fit is left out, oldest first. A reply may take half of the context window, or `max_tokens` if that
        is less; one that asks for more gets what the prompt leaves. Token ids of a stop string, or of characters that were never
        finished, are not yielded: they are made again by whoever goes on.

        Raises:
            EngineUnavailable: the model is not loaded, its process is gone, or it fell silent.
            ModelNotServed: another model is asked for.
            EngineRejected: the message is too long, or the model does not take it with these options.
            EngineError: vLLM failed with this request.
        """
        if prompt.model not in ("", self._info.model):
            raise ModelNotServed(f"This pool has no model {prompt.model}: its one is {self._info.model}.")
        model = self._ready()
        asked = options.max_tokens or self._config.max_tokens
        window = prompt.personality.window_within(model.window)
        room = window - min(asked, window // 2)
        prompt = fit(prompt, room=room, count=lambda cut: len(model.render(cut)))
        prompt_ids = model.render(prompt)
        text, said_ids = self._resume(model, prompt_ids, continue_from)
        left = min(asked, window - len(prompt_ids)) - len(said_ids)
        made = 0
        if left > 0 and not text.stopped:
            outputs = model.generate([*prompt_ids, *said_ids], options, left, run)
            self._busy += 1
            try:
                async with contextlib.aclosing(outputs):
                    while not text.stopped and (tokens := await self._next(outputs, first=made == 0)) is not None:
                        self._spoke_at, self._waited_since = asyncio.get_running_loop().time(), None
                        self._hangs = False
                        made += tokens.made
                        text.read(tokens.ids)
                        piece, piece_ids = text.take()
                        if piece:
                            yield EnginePiece(piece, piece_ids)
            finally:
                self._busy -= 1
        piece, piece_ids = text.finish()
        usage = Usage(prompt_tokens=len(prompt_ids), completion_tokens=len(said_ids) + made)
        yield EnginePiece(piece, piece_ids, usage)

    async def _next(self, outputs: AsyncGenerator[Tokens, None], *, first: bool) -> Tokens | None:
        """Return the next tokens, none at the end. The first ones may take long: they wait for others, and for the prompt."""
        self._ready()
        if first and self._waited_since is None:
            self._waited_since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None if first else self._config.silence_timeout_s) as wait:
                self._waits.add(wait)
                try:
                    return await anext(outputs, None)
                finally:
                    self._waits.discard(wait)
        except TimeoutError as error:
            self._ready()
            # Not every reply that waits tells of a hang: vLLM lets some wait for the others when its memory is full.
            self._hangs = self._silent_since(self._spoke_at)
            raise EngineUnavailable(self._silence()) from error
        except asyncio.CancelledError:
            # Whoever waited has given up: the pool's limit for the first token, or a person. Several may have, one by one.
            self._hangs |= self._waited_since is not None and self._silent_since(self._waited_since)
            raise

    def _silent_since(self, at: float) -> bool:
        return asyncio.get_running_loop().time() - at >= self._config.silence_timeout_s

    def _silence(self) -> str:
        return f"The engine made no token for {self._config.silence_timeout_s:g} s."

    def _resume(self, model: VllmModel, prompt_ids: Sequence[int], said: Prefix) -> tuple[TokenText, Sequence[int]]:
        """Return the reader of the reply after what was said, and the ids of that: the logged ones if they say it."""
        text = TokenText(model.decode, context=prompt_ids, stop=self._config.stop)
        if model.knows(said.token_ids) and text.resume(said.text, said.token_ids):
            return text, said.token_ids
        ids = model.encode(said.text)
        text = TokenText(model.decode, context=[*prompt_ids, *ids], stop=self._config.stop)
        text.resume_after(said.text)
        return text, ids


def _let_go(loading: "asyncio.Future[VllmModel]") -> None:
    """Release a model that nobody waits for any more, and look at the failure, for nobody else does."""
    if not loading.cancelled() and loading.exception() is None:
        threading.Thread(target=loading.result().shutdown, daemon=True).start()  # it blocks
