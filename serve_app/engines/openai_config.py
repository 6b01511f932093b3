"""The configuration of the engine `openai_compatible`, for one pool."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S+$")]
OURS = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "n",
        "echo",
        "continue_final_message",
        "add_generation_prompt",
    }
)
"""Fields of a request that the engine's promises hang on."""


class OpenAICompatibleConfig(BaseModel):
    """How the openai_compatible engine runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["openai_compatible"] = Field("openai_compatible", description="Tells the engines' configurations apart.")
    base_url: str = Field(
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="Where the server is, up to its version, like `http://10.0.0.9:8080/v1`.",
        examples=["http://10.0.0.9:8080/v1"],
    )
    model: ModelName = Field(
        description="The model that answers where a personality names none, as `/v1/models` of the server spells it.",
        examples=["qwen2.5-7b-instruct"],
    )
    models: tuple[ModelName, ...] = Field(
        (), description="Further models that personalities may name; the server must have them."
    )
    api_key_file: str = Field(
        "",
        description="File that holds the key and nothing else, readable by the replicas. Empty: the server asks for none. A "
        "file, because this configuration is shown on dashboards.",
    )
    continuation: Literal["trailing", "vllm", "none"] = Field(
        description="How the server goes on from the beginning of a reply. `trailing`: from an assistant message at the end "
        "(llama.cpp server). `vllm`: the same, told with `continue_final_message`. `none`: it does not; another pool goes on, or "
        "the turn fails and keeps what was said. No default, because a server that is wrongly trusted answers anew, and not "
        "every new answer can be told from a continuation."
    )
    context_window: int = Field(
        4_096,
        ge=256,
        le=2_097_152,
        description="Tokens that a model sees at once, prompt and reply together: what one slot of the server has. A vLLM tells "
        "its own, and the smaller counts. The default is the smallest that servers have by theirs.",
    )
    max_tokens: int = Field(
        1_024,
        ge=1,
        le=32_768,
        description="Upper bound of a reply in tokens, where neither request nor personality sets max_tokens.",
    )
    slots: int = Field(
        4,
        ge=0,
        le=4_096,
        description="Replies that the server makes at once; further ones wait in it. 0: any number. llama.cpp's --parallel, "
        "vLLM's --max-num-seqs.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of every request, in the server's own words, like `min_p`."
    )
    extra_body_continuing: dict[str, Any] = Field(
        default_factory=dict,
        description="The same, only where a reply is gone on with; they win. For a model that thinks, what switches that off, "
        "like `chat_template_kwargs: {enable_thinking: false}`.",
    )
    connect_s: float = Field(3.0, gt=0, description="Seconds to connect: more means, on the networks this is for, not there.")
    check_s: float = Field(
        5.0, gt=0, description="Seconds a health check may take; less than Serve's health_check_timeout_s, to say why it failed."
    )
    first_token_s: float = Field(
        50.0,
        gt=0,
        description="Seconds to the first sign of a reply, which may wait for a slot, or for a model to load. Less than the "
        "pool's first_piece_timeout_s, to say why.",
    )
    silence_s: float = Field(
        20.0,
        gt=0,
        description="Seconds between two signs of life before the server counts as hanging. Less than piece_timeout_s.",
    )

    @field_validator("extra_body", "extra_body_continuing")
    @classmethod
    def _not_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OURS & given.keys()):
            raise ValueError(f"{', '.join(taken)}: set by the engine itself; leave it out")
        return given
