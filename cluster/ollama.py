"""The Ollama of this machine, as the command line sees it: whether one answers, and which of its models can chat."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from cluster.failures import LifecycleError

ANSWER_S = 2.0
LABEL = "aurora/ollama"
"""The label of nodes that have an Ollama: pools of the engine `ollama` ask for it."""
OLDEST = (0, 9, 0)
"""The first version that the engine `ollama` takes."""
_SILENT_S = 120.0
"""How long a pull may say nothing; it checks whole layers in one go."""


@dataclass(frozen=True)
class Ollama:
    """An Ollama server that answers. `models` are those that can chat, the latest first."""

    url: str
    version: str
    models: tuple[str, ...]

    @property
    def too_old(self) -> bool:
        """Whether the engine refuses it; one built by hand says `0.0.0`, or no number, and is believed to be new."""
        found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", self.version)
        numbers = tuple(map(int, found.groups())) if found else ()
        return any(numbers) and numbers < OLDEST

    def has(self, model: str) -> bool:
        """Whether `model` is there; without a tag, `latest` is meant."""
        return model in self.models or f"{model}:latest" in self.models


def pull(server: Ollama, model: str, on_progress: Callable[[str], None]) -> None:
    """Have the server fetch `model`; tells how far it is.

    Raises:
        LifecycleError: it cannot; says what to do.
    """
    advice = f"look at it by hand with `ollama pull {model}`, or choose another one with AURORA_OLLAMA_MODEL"
    try:
        timeout = httpx.Timeout(ANSWER_S, read=_SILENT_S)
        with (
            httpx.Client(base_url=server.url, timeout=timeout, trust_env=False) as client,
            client.stream("POST", "/api/pull", json={"model": model}) as response,
        ):
            for line in response.iter_lines():
                told = json.loads(line)
                if "error" in told:
                    raise LifecycleError(f"Ollama cannot pull {model}: {told['error']}; {advice}.")
                done, total = told.get("completed", 0), told.get("total", 0)
                on_progress(f"{100 * done // total} %" if total else str(told.get("status", "")))
    except (httpx.HTTPError, ValueError) as error:
        raise LifecycleError(f"Ollama stopped while it pulled {model} ({type(error).__name__}); {advice}.") from error


def base_url(url: str) -> str:
    """Return `url` with its scheme, as `AURORA_OLLAMA_URL` may come without."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


def find(url: str, *, patience_s: float = ANSWER_S) -> Ollama | None:
    """Return the Ollama server at `url`; None where nothing answers there that is one."""
    try:
        with httpx.Client(base_url=base_url(url), timeout=patience_s, trust_env=False) as client:
            version = client.get("/api/version").raise_for_status().json()["version"]
            tags = client.get("/api/tags").raise_for_status().json()["models"] or []
            names = [str(tag["name"]) for tag in sorted(tags, key=lambda tag: str(tag.get("modified_at", "")), reverse=True)]
            return Ollama(str(client.base_url).rstrip("/"), str(version), tuple(name for name in names if _chats(client, name)))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, AttributeError):
        return None


def _chats(client: httpx.Client, model: str) -> bool:
    """Tell whether a model can chat; an embedding model cannot. Older servers do not say, and are believed to."""
    shown = client.post("/api/show", json={"model": model}).raise_for_status().json()
    return "completion" in shown.get("capabilities", ["completion"])
