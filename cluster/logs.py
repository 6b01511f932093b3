"""Finding the log files of a component, and reading their ends, once or as they grow."""

import time
from collections.abc import Iterator
from pathlib import Path

from cluster.failures import LifecycleError
from cluster.ray_environment import HAPROXY
from cluster.settings import Settings

# Patterns below the folder of Serve's logs (serve/) or of the process logs (home/).
_SERVE = {
    "chat-backend": ("replica_*.log",),
    "ingress": ("replica_*_Ingress_*.log",),
    "router": ("replica_*_PersonalityRouter_*.log",),
    "inference": ("replica_*_Inference_*.log",),
    "proxy": ("proxy_*.log", "haproxy_*.log"),
    "controller": ("controller_*.log",),
}
_HOME = {"redis": "redis.log", "ray": "ray.log", "caretaker": "caretaker.log"}
COMPONENTS = (*_SERVE, "haproxy", *_HOME)


def files(settings: Settings, component: str) -> list[Path]:
    """Return the log files of a component, of the current run or else of the last.

    Raises:
        LifecycleError: there is no such component.
    """
    if component in _HOME:
        return [path for path in (settings.logs / _HOME[component],) if path.exists()]
    live = settings.ray_folder / "session_latest" / "logs"
    logs = live if live.exists() else settings.logs / "ray-last"
    if component == "haproxy":
        return sorted(settings.ray_folder.glob(f"{HAPROXY}/*/*.log")) + files(settings, "proxy")
    if component not in _SERVE:
        raise LifecycleError(f"There is no component {component!r}. There are: {', '.join(COMPONENTS)}.")
    return sorted(path for pattern in _SERVE[component] for path in (logs / "serve").glob(pattern))


def last_lines(paths: list[Path], count: int) -> Iterator[tuple[Path, str]]:
    """Yield the last `count` lines of each file, the file written to last coming last."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        for line in _tail(path, count):
            yield path, line


def follow(settings: Settings, component: str) -> Iterator[tuple[Path, str]]:
    """Yield every line that is written from now on, also to files that appear later; without end."""
    positions = {path: path.stat().st_size for path in files(settings, component)}
    while True:
        for path in files(settings, component):
            position = positions.setdefault(path, 0)
            with path.open("rb") as file:
                file.seek(position)
                new = file.read()
            # A line still being written waits for its end.
            whole = new[: new.rfind(b"\n") + 1]
            positions[path] = position + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                yield path, line
        time.sleep(0.2)


def _tail(path: Path, count: int) -> list[str]:
    with path.open("rb") as file:
        end = file.seek(0, 2)
        block, data = 65_536, b""
        while end > 0 and data.count(b"\n") <= count:
            start = max(0, end - block)
            file.seek(start)
            data = file.read(end - start) + data
            end = start
    return data.decode(errors="replace").splitlines()[-count:] if count else []
