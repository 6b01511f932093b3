"""One Ollama: Aurora, the seed's container and the LiteLLM proxy before one and the same stand-in, measured in turns."""

import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.bench import asking, litellm_proxy, starting
from tests.bench.asking import Dialect
from tests.bench.baseline import PERSONALITIES
from tests.bench.cpu import spent
from tests.bench.fast_ollama import MODEL
from tests.support.redis_process import free_port

AURORA, SEED, LITELLM, BARE = "aurora", "one process", "litellm", "stand-in"
WINDOW_S, PACED_WINDOW_S, QUICK_S = 5.0, 9.0, 1.0
PACE = 100.0
"""Tokens a second of each reply in the paced cases, as of a small model on a GPU."""
MESSAGE = "How are you today?"
_SYSTEM = str(yaml.safe_load((PERSONALITIES / "robbie.yaml").read_text())["system"])


@dataclass(frozen=True)
class Case:
    """What is asked. A `pace` of 0: the stand-in says it all at once."""

    tokens: int
    stream: bool
    connections: int
    pace: float = 0.0


CASES = [Case(tokens, stream, at) for tokens in (20, 300) for stream in (False, True) for at in (1, 8, 32)]
PACED_CASES = [Case(20, True, 1, PACE), *(Case(300, True, at, PACE) for at in (8, 32))]


@dataclass
class Measured:
    """One system, one case, once. Milliseconds; of a stream `first_p50_ms` is the time to its first token."""

    system: str
    tokens: int
    stream: bool
    connections: int
    pace: float
    round: int
    turns: int
    failures: int
    rate: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    cpu_ms: dict[str, float]
    """A turn's, of the system's own processes, by role."""
    standin_ms: float
    generator_ms: float
    problem: str


@dataclass
class System:
    """Something that answers, and its processes: none of the stand-in itself, where it is what is measured."""

    name: str
    port: int
    dialect: Dialect
    processes: list[psutil.Process]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]


def measure(rounds: int, *, quick: bool) -> dict[str, Any]:
    """Measure every case of every system `rounds` times; return what is known of them.

    Raises:
        NotStarted: one of them cannot be measured. LiteLLM that is not installed is left out, loudly.
    """
    measured = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aurora-bench-")))
        standin = _standin(stack, folder)
        systems = _systems(stack, folder, standin)
        idle = {system.name: _idle_cores(system, QUICK_S if quick else WINDOW_S) for system in systems if system is not standin}
        for number in range(rounds):
            for case in [*CASES, *PACED_CASES]:
                httpx.post(f"http://127.0.0.1:{standin.port}/control", json={"tokens_per_second": case.pace}, trust_env=False)
                for system in systems if number % 2 == 0 else reversed(systems):
                    window = QUICK_S if quick else WINDOW_S
                    if case.pace:
                        window = max(window, case.tokens / case.pace) if quick else PACED_WINDOW_S
                    one = _measure(system, standin, case, number, window)
                    measured.append(one)
                    _say(f"{number + 1}/{rounds}", one)
    return {
        "litellm": litellm_proxy.version() if litellm_proxy.is_there() else "",
        "window_s": QUICK_S if quick else WINDOW_S,
        "idle_cores": idle,
        "measured": [asdict(one) for one in measured],
    }


def _standin(stack: ExitStack, folder: Path) -> System:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/version"
    process = starting.program(
        stack, [sys.executable, "-m", "tests.bench.fast_ollama", str(port)], url, log=folder / "stand-in.log"
    )
    return System(BARE, port, Dialect("/api/chat", as_ollama, b'"done":true'), [process])


def _systems(stack: ExitStack, folder: Path, standin: System) -> list[System]:
    """Start the others; each has answered for a while when this returns."""
    url = f"http://127.0.0.1:{standin.port}"
    print("Starting Aurora, the seed's container and the LiteLLM proxy before one stand-in for Ollama ...", flush=True)
    # The end of a stream holds the whole reply once more, in both.
    chat = Dialect("/api/chat", _as_client, b"event: done", copies=2)
    port, _, processes = starting.aurora(stack, folder / "home", ollama_url=url)
    systems = [standin, System(AURORA, port, chat, processes)]
    port, _, processes = starting.one_process(stack, folder / "seed", url)
    systems.append(System(SEED, port, chat, processes))
    if litellm_proxy.is_there():
        port, processes = litellm_proxy.start(stack, folder, url, MODEL)
        systems.append(System(LITELLM, port, Dialect("/v1/chat/completions", _as_openai, b"data: [DONE]"), processes))
    else:
        print(
            f"LITELLM IS NOT MEASURED: its environment is not there. Make it with: {litellm_proxy.HOW_TO_MAKE}", file=sys.stderr
        )
    for system in systems:
        for stream in (False, True):
            _measure(system, standin, Case(20, stream, 8), 0, 1.5)
    return systems


def _measure(system: System, standin: System, case: Case, number: int, seconds: float) -> Measured:
    own = [] if system is standin else system.pids
    # By process, not by role: Ray's processes change their titles, and with them their roles.
    before, standin_before = spent(own), spent(standin.pids)
    result = asyncio.run(
        asking.run(
            system.port,
            system.dialect,
            connections=case.connections,
            tokens=case.tokens,
            stream=case.stream,
            seconds=seconds,
            prefix=f"bench{time.time_ns()}",
        )
    )
    per_turn = 1e3 / max(1, result.turns)
    cpu = {role: seconds * per_turn for role, seconds in spent(own).since(before).items()}
    standin_s = sum(spent(standin.pids).since(standin_before).values())
    return Measured(
        system.name, case.tokens, case.stream, case.connections, case.pace, number, result.turns, result.failures, result.rate,
        result.quantile(0.5) * 1e3, result.quantile(0.99) * 1e3, result.first_p50 * 1e3,
        {role: ms for role, ms in cpu.items() if ms >= 0.005},
        standin_s * per_turn, result.cpu_s * per_turn, result.problem,
    )  # fmt: skip


def _idle_cores(system: System, seconds: float) -> float:
    """Return how many cores a system uses while nobody asks it anything."""
    before, begun = spent(system.pids), time.monotonic()
    time.sleep(seconds)
    return sum(spent(system.pids).since(before).values()) / (time.monotonic() - begun)


def _as_client(client: str, tokens: int, stream: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {"message": MESSAGE, "personality": "robbie", "client_id": client, "options": {"max_tokens": tokens}}
    return asked | ({"stream": True} if stream else {})


def _as_openai(client: str, tokens: int, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": _messages(), "max_tokens": tokens, "stream": stream}


def as_ollama(client: str, tokens: int, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": _messages(), "options": {"num_predict": tokens}, "stream": stream}


def _messages() -> list[dict[str, str]]:
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": MESSAGE}]


def _say(where: str, one: Measured) -> None:
    kind = f"{one.tokens:3} tokens {'streamed' if one.stream else 'whole':8}{' paced' if one.pace else ''}"
    print(
        f"{where}  {one.system:12} {kind} {one.connections:3} connections {one.rate:7.1f} turns/s  p50 {one.p50_ms:7.1f} ms  "
        f"p99 {one.p99_ms:7.1f} ms  first {one.first_p50_ms:6.1f} ms  CPU {sum(one.cpu_ms.values()):6.2f} ms/turn  "
        f"stand-in {one.standin_ms:5.2f}  generator {one.generator_ms:5.2f}  failures {one.failures}"
        f"{f': {one.problem}' if one.problem else ''}",
        flush=True,
    )
