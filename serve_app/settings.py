"""What the serving side reads from the environment: facts of the node and secrets, nothing else."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from serve_app.chat.ids import NODE_NAME


class Settings(BaseSettings):
    """Facts of this node. Read once, in the constructors of the deployments."""

    model_config = SettingsConfigDict(env_prefix="AURORA_", frozen=True)

    node_name: str = Field("aurora", pattern=NODE_NAME, description="The operator's name for this machine.")
    redis_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="The chat's Redis.")
    loopback: bool = Field(False, description="Bind Serve's inter-deployment ports to the loopback address only.")
