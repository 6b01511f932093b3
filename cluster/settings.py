"""The facts of this machine that the command line needs, from `AURORA_*` in the environment.

The serving side reads its own in `serve_app/settings.py`; the two share names, not code.
"""

import hashlib
import ipaddress
import os
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where Aurora lives and listens."""

    model_config = SettingsConfigDict(env_prefix="AURORA_", frozen=True, extra="ignore")

    home: Path = Field(
        default=PROJECT_ROOT / ".aurora", description="Folder of everything that outlives a run: data, logs, record."
    )
    host: str = Field(default="127.0.0.1", description="Address the chat API listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port of the chat API.")
    dashboard_port: int = Field(default=8265, ge=1, le=65535, description="Port wanted for the Ray dashboard; another if taken.")
    redis_url: str = Field(default="", description="A Redis of the operator's; empty: start our own.")
    ollama_url: str = Field(
        default="127.0.0.1:11434", min_length=1, description="Where the Ollama of this machine answers, if any."
    )
    ollama_model: str = Field(default="", description="The model wanted of it; empty: the latest one there that can chat.")
    node_name: str = Field(default="aurora", min_length=1, description="The name of this machine, as answers carry it.")

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        if value == "localhost":
            return "127.0.0.1"
        try:
            ipaddress.IPv4Address(value)
        except ValueError:
            raise ValueError(f"{value!r} is not an IPv4 address; use 127.0.0.1, 0.0.0.0 or an address of this machine") from None
        return value

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the chat."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def local_url(self) -> str:
        """The chat API, as this machine reaches it."""
        return f"http://{reachable(self.host)}:{self.port}"

    @property
    def logs(self) -> Path:
        """Where the logs of what we start are kept."""
        return self.home / "logs"

    @property
    def ray_folder(self) -> Path:
        """Ray's folder while it runs.

        Short, because Serve puts the sockets of HAProxy below a folder with a name of 56 characters inside it, and HAProxy
        takes no path of more than 97.
        """
        digest = hashlib.sha256(f"{owner_of(self.home)}:{self.home}".encode()).hexdigest()[:8]
        return Path("/tmp") / f"aurora-{digest}"


def owner_of(home: Path) -> int:
    """Return the number of the user whose Aurora lives in `home`: another than ours where root looks at a node's."""
    return home.stat().st_uid if home.exists() else os.getuid()


def reachable(host: str) -> str:
    """Return the address under which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if host == "0.0.0.0" else host
