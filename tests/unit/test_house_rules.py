"""The house: who may import whom, who may read what, and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SERVING = sorted([*(PROJECT / "serve_app").rglob("*.py"), *(PROJECT / "deployments").rglob("*.py")])
each_file = pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(PROJECT)))

ALONE = """
import importlib, io, pathlib, pkgutil, socket, subprocess, sys, threading
# What other people's packages do at import is their own affair.
import asyncio, fastapi, fastapi_offline, ollama, orjson, pydantic_settings, redis.asyncio, yaml

def forbidden(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir", "os.remove", "os.rename"):
        raise RuntimeError(f"{event} {arguments} at import")
    if event == "open" and isinstance(arguments[0], str):
        name, mode, flags = arguments
        if not name.endswith((".py", ".pyc", ".so")) and "__pycache__" not in name and not pathlib.Path(name).is_dir():
            if name.startswith(PROJECT) or (mode and set(mode) & set("wax+")):
                raise RuntimeError(f"{name} was opened at import")

sys.dont_write_bytecode = True
sys.addaudithook(forbidden)
import serve_app
names = [m.name for m in pkgutil.walk_packages(serve_app.__path__, "serve_app.")]
for name in names:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
print(len(names))
"""


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module or ""


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for such an expression, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_the_contracts_of_the_imports_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_any_module_of_serve_app_opens_nothing_and_starts_nothing() -> None:
    code = f"PROJECT = {str(PROJECT)!r}\n{ALONE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_importing_the_application_brings_in_neither_ray_nor_a_model() -> None:
    code = "import sys, serve_app.api.app, serve_app.state.bus, serve_app.engines; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
    assert {"ray", "vllm", "torch", "transformers", "ollama"} & set(done.stdout.split()) == set()


@each_file
def test_only_the_settings_read_the_environment(path: Path) -> None:
    if path in (PROJECT / "serve_app" / "settings.py", PROJECT / "serve_app" / "engines" / "vllm_processes.py"):
        return  # the second one writes it, for the processes that it lets start
    used = {dotted(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert used & {"os.environ", "os.getenv", "os.environb", "os.putenv"} == set()
    assert not [name for name in imported(path) if name in ("dotenv", "environs")]


@each_file
def test_serving_code_never_blocks_its_event_loop(path: Path) -> None:
    assert set(imported(path)) & {"requests", "urllib.request", "http.client", "subprocess"} == set()
    called = {dotted(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert called & {"time.sleep", "os.system", "redis.Redis", "input"} == set()


@pytest.mark.parametrize("path", [p for p in SERVING if "chat" in p.parts], ids=lambda path: path.name)
def test_the_core_imports_the_standard_library_pydantic_and_itself(path: Path) -> None:
    allowed = {"pydantic", "pydantic_core"} | sys.stdlib_module_names
    outside = [name for name in imported(path) if name.split(".")[0] not in allowed and not name.startswith("serve_app.chat")]
    assert outside == []


@each_file
def test_annotations_are_never_postponed_because_fastapi_and_serve_read_them(path: Path) -> None:
    assert "__future__" not in set(imported(path))


@each_file
def test_every_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 350


def test_only_one_module_spells_redis_keys() -> None:
    spelled = [
        str(path.relative_to(PROJECT))
        for path in SERVING
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("aurora:")
    ]
    assert set(spelled) == {"serve_app/state/keys.py"}


def test_no_script_spells_a_key_or_takes_the_time_by_itself() -> None:
    for path in (PROJECT / "serve_app" / "state" / "lua").glob("*.lua"):
        code = "\n".join(line.split("--")[0] for line in path.read_text().splitlines())
        assert "aurora:" not in code, path.name
        if path.name != "_clock.lua":
            assert "'TIME'" not in code, path.name
        assert path.read_text().startswith("-- "), path.name
