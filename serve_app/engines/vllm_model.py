"""A loaded model: vLLM's `AsyncLLM` with the tokenizer beside it, in the words of an engine.

The one place that knows vLLM's interface. Everything of vLLM is imported in `load`, so that a process without it can import this.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.chat.engine import Prompt
from serve_app.chat.errors import EngineError, EngineRejected, EngineUnavailable
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.engines.vllm_processes import EngineProcesses, end_orphans

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Tokens that came at once; `made` counts also the one that ends a turn, which `ids` leaves out, as it says nothing."""

    ids: tuple[int, ...]
    made: int


class VllmModel:
    """A model that is ready to generate. Made by `load`."""

    def __init__(self, llm: Any, template_args: dict[str, Any]) -> None:
        """Speak with `llm`, an `AsyncLLM`; the model's chat template gets `template_args`.

        Raises:
            EngineUnavailable: the model has no chat template that could be used.
        """
        import jinja2
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._template_args = template_args
        self._prompt, self._sampling, self._deltas = TokensPrompt, SamplingParams, RequestOutputKind.DELTA
        self._dead, self._refused, self._failed = EngineDeadError, VLLMClientError, VLLMError
        self._unrenderable = jinja2.TemplateError
        self._recommended: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self._vocabulary = int(llm.model_config.get_vocab_size())
        self.window = int(llm.model_config.max_model_len)
        """Tokens that prompt and reply may have together."""
        self._takes_system = self._accepts_a_system_prompt()

    def _accepts_a_system_prompt(self) -> bool:
        """Return whether the chat template knows a system prompt; there are models whose does not."""
        user = {"role": "user", "content": "Hello"}
        try:
            self._fill([{"role": "system", "content": "Be short."}, user])
        except (self._unrenderable, ValueError):
            try:
                self._fill([user])
            except (self._unrenderable, ValueError) as error:
                raise EngineUnavailable(
                    f"The model has no chat template that can be used ({error}). Take one that was made for conversations."
                ) from error
            return False
        return True

    def render(self, prompt: Prompt) -> list[int]:
        """Return the token ids of the whole prompt, up to where the model's reply begins.

        Messages of one speaker in a row, as after a reply that failed, become one: many templates insist on taking turns.

        Raises:
            EngineRejected: the chat template does not take this conversation.
        """
        system = prompt.personality.system
        messages = [{"role": "system", "content": system}] if self._takes_system else []
        for message in prompt.messages:
            content = message.content
            if not messages and message.role == Role.USER and not self._takes_system:
                content = f"{system}\n\n{content}"
            if messages and messages[-1]["role"] == message.role.value:
                messages[-1]["content"] += f"\n\n{content}"
            else:
                messages.append({"role": message.role.value, "content": content})
        try:
            return self._fill(messages)
        except self._unrenderable as error:
            raise EngineRejected(f"The model's chat template does not take this conversation: {error}") from error

    def _fill(self, messages: list[dict[str, str]]) -> list[int]:
        filled = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **self._template_args
        )
        return list(filled)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return token ids for `text`: some that say it, not those it was made of."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False)) if text else ()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def knows(self, ids: Sequence[int]) -> bool:
        """Return whether `ids` may be of this model's vocabulary."""
        return all(0 <= token_id < self._vocabulary for token_id in ids)

    async def generate(
        self, ids: Sequence[int], options: Options, max_tokens: int, request_id: str
    ) -> AsyncGenerator[Tokens, None]:
        """Yield the tokens after `ids`. Closing it aborts the request.

        Raises:
            EngineUnavailable: the engine's process is gone.
            EngineRejected: vLLM does not take this prompt with these options.
            EngineError: vLLM failed with this request.
        """
        asked = {name: value for name in ("temperature", "top_p", "seed") if (value := getattr(options, name)) is not None}
        try:
            # Text is made from the ids here (`token_text`): vLLM's own would come without the ids that are behind it.
            sampling = self._sampling(
                **{**self._recommended, **asked, "max_tokens": max_tokens}, detokenize=False, output_kind=self._deltas
            )
            prompt = self._prompt(prompt_token_ids=list(ids))
            async for output in self._llm.generate(prompt, sampling, request_id=request_id):
                [completion] = output.outputs
                made = tuple(completion.token_ids)
                # `stop`: the last token is the one by which the model ends its turn.
                yield Tokens(made[:-1] if completion.finish_reason == "stop" else made, len(made))
                if completion.finish_reason == "error":
                    raise EngineError("vLLM failed with this request.")
        except self._dead as error:
            raise EngineUnavailable("The engine's process is gone.") from error
        except (self._refused, ValueError) as error:
            raise EngineRejected(f"The model does not take this: {error}") from error
        except self._failed as error:
            raise EngineError(f"vLLM failed with this request: {error.__cause__ or error}") from error

    async def try_out(self) -> None:
        """Make one token, because not all that loads can compute; whatever compiles late does so now.

        Raises:
            EngineUnavailable: the model cannot generate.
        """
        ids = self._fill([{"role": "user", "content": "Hello"}])
        try:
            async for _ in self.generate(ids, Options.model_construct(), 1, "try-out"):
                pass
        except EngineError as error:
            raise EngineUnavailable(f"The model loads, but cannot generate; vLLM's log says why. {error.message}") from error

    async def check(self) -> None:
        """Return if vLLM says that it is well.

        Raises:
            EngineUnavailable: it does not.
        """
        try:
            await self._llm.check_health()
        except self._failed as error:
            raise EngineUnavailable("The engine's process is gone.") from error

    def unfinished(self) -> int:
        """Return how many requests vLLM has."""
        return int(self._llm.get_num_unfinished_requests())

    def shutdown(self) -> None:
        """End vLLM. Blocks; for a thread."""
        self._llm.shutdown(timeout=0)


def load(engine_args: dict[str, Any], template_args: dict[str, Any], processes: EngineProcesses) -> VllmModel:
    """Return the model of `engine_args`, loaded by `processes`. Takes seconds to minutes, and blocks; for a thread.

    Raises:
        EngineUnavailable: vLLM is not installed, or it cannot load this model; the message says why.
    """
    end_orphans()
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineUnavailable(f"vLLM cannot be used here ({error}). Install it with: pip install 'aurora[vllm]'") from error
    llm: Any = None
    try:
        with processes.marking():
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args))
        return VllmModel(llm, template_args)
    except Exception as error:
        if llm is not None:
            llm.shutdown(timeout=0)
        if isinstance(error, EngineError):
            raise
        # Whatever it is, of torch, of the driver, of the model's own code: the pool has no engine, and people must read why.
        log.exception("The model %s could not be loaded.", engine_args.get("model"))
        raise EngineUnavailable(f"The model {engine_args.get('model')} could not be loaded: {error}") from error
