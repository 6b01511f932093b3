"""What the serving side reads from the environment: facts of the node and secrets, nothing else."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from serve_app.chat.ids import NODE_NAME


class Settings(BaseSettings):
    """Facts of this node. Read once, in the constructors of the deployments."""

    model_config = SettingsConfigDict(env_prefix="AURORA_", frozen=True)

    node_name: str = Field("aurora", pattern=NODE_NAME, description="The operator's name for this machine.")
    node_url: str = Field(
        "",
        pattern=r"^(https?://[^\s/]+)?$",
        description="Where clients reach this node, like http://10.0.0.1:8000; empty: it is not told to clients.",
    )
    redis_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="The chat's Redis.")
    durability_replicas: int = Field(
        0,
        ge=0,
        description="On how many Redis replicas a message or an answer must be before it is acknowledged; 0: one Redis alone.",
    )
    ollama_url: str = Field(
        "127.0.0.1:11434",
        pattern=r"^(https?://)?[^\s/]+/?$",
        description="This node's Ollama server, for pools that name none; http where it says nothing else.",
    )
    loopback: bool = Field(False, description="Bind Serve's inter-deployment ports to the loopback address only.")
