"""The record of the current run (`run.json` in the home folder), and the lock that lets one command at a time change it."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.failures import LifecycleError
from cluster.processes import find
from cluster.settings import reachable


class Started(BaseModel):
    """A process we started: its number, and when, as numbers come again."""

    model_config = ConfigDict(frozen=True)

    pid: int
    at: float

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return find(self.pid, self.at) is not None


class RunRecord(BaseModel):
    """What one `up` started. Written before anything is started, and again with every step."""

    model_config = ConfigDict(extra="ignore")

    run: str
    started_at: datetime
    host: str
    port: int
    node_name: str
    config: Path
    ollama_model: str = ""
    """The model that was filled in for the pool `ollama`."""
    dashboard_port: int
    redis_url: str
    redis_version: str = ""
    redis: Started | None = None
    ray: Started | None = None
    ports: dict[str, int] = {}
    versions: dict[str, str] = {}
    token_file: Path | None = None
    answered: bool = False

    def save(self, home: Path) -> None:
        """Write the record whole or not at all; readable by this user only, as a Redis URL may hold a password."""
        temporary = home / "run.json.new"
        temporary.touch(mode=0o600)
        temporary.write_text(self.model_dump_json(indent=2))
        temporary.replace(home / "run.json")

    @property
    def processes_alive(self) -> bool:
        """Whether the processes that everything hangs on still run."""
        redis = self.redis is None or self.redis.alive
        return redis and self.ray is not None and self.ray.alive

    @property
    def sessions(self) -> list[int]:
        """The sessions that our processes lead."""
        return [started.pid for started in (self.redis, self.ray) if started]

    @property
    def api_url(self) -> str:
        """Where this machine reaches the chat API."""
        return f"http://{reachable(self.host)}:{self.port}"

    @property
    def dashboard_url(self) -> str:
        """Where this machine reaches Ray's dashboard."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def dashboard_headers(self) -> dict[str, str]:
        """The headers that Ray's dashboard asks for."""
        return {"Authorization": f"Bearer {self.token_file.read_text().strip()}"} if self.token_file else {}


def load(home: Path) -> RunRecord | None:
    """Return the record of the current run, or None; a damaged one counts as none (what runs is found by its mark).

    Raises:
        LifecycleError: it is another user's.
    """
    try:
        return RunRecord.model_validate_json((home / "run.json").read_text())
    except PermissionError as error:
        raise LifecycleError(f"The Aurora in {home} is another user's: become that user, or root (sudo aurora-cli …).") from error
    except (FileNotFoundError, ValidationError):
        return None


def forget(home: Path) -> None:
    """Remove the record."""
    (home / "run.json").unlink(missing_ok=True)


@contextmanager
def lock(home: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the home's lock, waiting for whoever has it after a call of `on_wait`.

    The kernel releases it with the process, however that ends.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
