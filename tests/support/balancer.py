"""A real load balancer on loopback, with the configuration that `aurora-cli lb` prints."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from cluster.balancer import render
from cluster.balancer.backends import Backend
from cluster.packages import ensure
from tests.support.nodes import Node
from tests.support.redis_process import free_port

PROGRAMS = ("haproxy", "nginx", "caddy")


def backends(nodes: Sequence[Node]) -> list[Backend]:
    return [Backend(node.stack.service.node, "127.0.0.1", node.door.port) for node in nodes]


def written(program: str, found: Sequence[Backend], front: render.Front, folder: Path) -> Path:
    """Write the configuration of `program` and return its path."""
    text = getattr(render, program)(found, front)
    if program == "caddy":  # its own control port is of no use here, and one for all Caddys of a machine
        text = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + text
    path = folder / {"haproxy": "haproxy.cfg", "nginx": "nginx.conf", "caddy": "Caddyfile"}[program]
    path.write_text(text)
    return path


def check_command(program: str, config: Path) -> list[str]:
    """Return the command by which `program` itself judges a configuration."""
    return {
        "haproxy": [ensure("haproxy"), "-c", "-f", str(config)],
        "nginx": [ensure("nginx"), "-t", "-c", str(config), "-g", f"pid {config.parent}/nginx.pid;"],
        "caddy": [ensure("caddy"), "validate", "--config", str(config), "--adapter", "caddyfile"],
    }[program]


def run_command(program: str, config: Path) -> list[str]:
    """Return the command that runs `program` in the foreground; it ends, with all its processes, when it is terminated."""
    return {
        "haproxy": [ensure("haproxy"), "-db", "-f", str(config)],
        "nginx": [ensure("nginx"), "-c", str(config), "-g", f"daemon off; pid {config.parent}/nginx.pid;"],
        "caddy": [ensure("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"],
    }[program]


@contextlib.contextmanager
def balancer(program: str, found: Sequence[Backend], folder: Path) -> Iterator[str]:
    """Run `program` over these nodes; gives its base URL. It may not answer yet."""
    port = free_port()
    config = written(program, found, render.Front(port), folder)
    env = {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    with (folder / f"{program}.log").open("wb") as log:
        process = subprocess.Popen(run_command(program, config), stdout=log, stderr=log, env=env)
    try:
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, (folder / f"{program}.log").read_text()
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a balancer; only if it does not listen, by force."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


async def answers(url: str) -> bool:
    """Say whether Aurora answers there."""
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        try:
            return (await http.get(f"{url}/health")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False
