"""The configuration of the engine `ollama`, for one pool."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ModelName = Annotated[str, Field(pattern=r"^[\w.-]+(?:[:/][\w.-]+)*$")]


class OllamaConfig(BaseModel):
    """How the ollama engine runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ollama"] = Field("ollama", description="Tells the engines' configurations apart.")
    model: ModelName = Field(
        description="The model that answers where a personality names none, like `llama3.2`. It is loaded at the start and kept.",
        examples=["llama3.2"],
    )
    models: tuple[ModelName, ...] = Field(
        (), description="Further models that personalities may name. They are there from the start, and loaded when first asked."
    )
    url: str = Field(
        "",
        pattern=r"^(https?://[^\s/]+)?$",
        description="Where the server is. Empty: the node's own, AURORA_OLLAMA_URL, because each node of a pool has one.",
    )
    pull: bool = Field(
        True, description="Fetch models that the server lacks. Off where nodes have no way out: then they are errors."
    )
    keep_alive_s: float = Field(
        -1,
        description="Seconds for which a model stays loaded after a reply; negative: for ever, because loading one takes "
        "longer than anybody waits for an answer. Ollama's own default is 300.",
    )
    context_window: int = Field(
        8_192,
        ge=256,
        le=1_048_576,
        description="Tokens that a model sees at once, prompt and reply together (num_ctx). Ollama's default of 4096 is short "
        "for a chat; each further token costs memory on the GPU, once per slot. A model that was made for fewer gets those.",
    )
    num_predict: int = Field(
        1_024,
        ge=1,
        le=32_768,
        description="Upper bound of a reply in tokens, where neither request nor personality sets max_tokens.",
    )
    slots: int = Field(
        4,
        ge=1,
        le=256,
        description="Replies that the server makes at once; further ones wait in it. Set OLLAMA_NUM_PARALLEL of the server to "
        "the same.",
    )
    think: bool | Literal["low", "medium", "high"] = Field(
        False,
        description="Whether a model that can think does so before it answers. Off, because a user sees nothing meanwhile, and "
        "because an answer that was thought about is continued without its thoughts.",
    )
    connect_s: float = Field(
        5.0, gt=0, description="Seconds to connect: the server is near, so more than a busy moment means that it is not there."
    )
    check_s: float = Field(
        5.0, gt=0, description="Seconds a health check may take; less than Serve's health_check_timeout_s, to say why it failed."
    )
    load_s: float = Field(300.0, gt=0, description="Seconds a model may take to load: tens of gigabytes from a slow disk.")
    first_line_s: float = Field(
        50.0,
        gt=0,
        description="Seconds to the first sign of a reply, which may have to wait for a slot or for a model to load. Less than "
        "the pool's first_piece_timeout_s, so that another replica goes on before the turn is given up.",
    )
    silence_s: float = Field(
        20.0,
        gt=0,
        description="Seconds between two signs of life, of a reply or of a pull, before the server counts as hanging. Less than "
        "the pool's piece_timeout_s, for the same reason.",
    )
