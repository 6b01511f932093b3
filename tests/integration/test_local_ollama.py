"""Which configuration `aurora-cli up` takes: that of the machine's Ollama, where one answers and can chat."""

import asyncio
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cluster import ollama, serve_config
from cluster.cluster_file import NodeSpec
from cluster.failures import LifecycleError
from cluster.node.start import with_ollama
from cluster.progress import Progress
from cluster.settings import Settings
from cluster.up import LOCAL, LOCAL_OLLAMA, bring_up, choose
from serve_app.engines import ollama_models
from tests.support.ollama_server import OllamaServer
from tests.support.redis_process import free_port
from tests.support.tiny_server import TinyServer

pytestmark = pytest.mark.integration


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    async with OllamaServer("llama3.2", "qwen3:4b", library=["gemma3"]) as server:
        yield server


async def chosen(url: str, model: str = "") -> tuple[Path, str, str]:
    """Return the configuration, the model, and what was said, in one line."""
    said = StringIO()
    settings = Settings(ollama_url=url, ollama_model=model)
    file, which = await asyncio.to_thread(choose, settings, Progress(Console(file=said, width=400)))
    return file, which, " ".join(said.getvalue().split())


async def test_an_ollama_with_a_model_is_used_and_named(server: OllamaServer) -> None:
    file, model, said = await chosen(server.url)
    assert (file, model) == (LOCAL_OLLAMA, "qwen3:4b"), "the latest of its two"
    assert f"Ollama 0.12.6 answers at {server.url}: its model qwen3:4b speaks." in said


async def test_an_address_without_http_is_one_too(server: OllamaServer) -> None:
    file, _, _ = await chosen(server.url.removeprefix("http://"))
    assert file == LOCAL_OLLAMA


async def test_the_model_asked_for_is_used_and_pulled_where_it_is_missing(server: OllamaServer) -> None:
    file, model, said = await chosen(server.url, "llama3.2")
    assert (file, model) == (LOCAL_OLLAMA, "llama3.2")
    assert "pulls" not in said
    file, model, said = await chosen(server.url, "gemma3")
    assert (file, model) == (LOCAL_OLLAMA, "gemma3")
    assert "Ollama pulls gemma3" in said
    assert "gemma3:latest" in server.models


async def test_a_model_that_cannot_be_pulled_is_said_with_what_to_do(server: OllamaServer) -> None:
    with pytest.raises(LifecycleError, match=r"Ollama cannot pull nonsense: .*ollama pull nonsense"):
        await chosen(server.url, "nonsense")


async def test_an_ollama_without_a_model_is_said_and_the_script_speaks() -> None:
    async with OllamaServer() as server:
        file, model, said = await chosen(server.url)
    assert (file, model) == (LOCAL, "")
    assert "has no model that can chat" in said
    assert "ollama pull llama3.2" in said


async def test_an_ollama_too_old_for_the_engine_is_said_and_the_script_speaks_without_pulling_anything() -> None:
    async with OllamaServer("llama3.2", library=["gemma3"], version="0.8.9") as server:
        file, model, said = await chosen(server.url, "gemma3")
        assert "gemma3:latest" not in server.models
    assert (file, model) == (LOCAL, "")
    assert f"Ollama 0.8.9 answers at {server.url} and is too old: the scripted engine speaks" in said
    assert "install 0.9.0 or newer" in said


@pytest.mark.parametrize("version", ["0.9.0", "v0.10.0", "1.0.0-rc1", "0.0.0", "of our own making"])
async def test_an_ollama_that_is_new_enough_or_does_not_tell_is_used(version: str) -> None:
    async with OllamaServer("llama3.2", version=version) as server:
        assert (await chosen(server.url))[0] == LOCAL_OLLAMA


async def test_the_oldest_ollama_that_is_used_is_the_oldest_that_the_engine_takes() -> None:
    assert ollama.OLDEST == ollama_models.OLDEST


async def test_where_nothing_answers_the_script_speaks_and_says_what_it_is() -> None:
    file, model, said = await chosen("127.0.0.1:9")
    assert (file, model) == (LOCAL, "")
    assert "No Ollama answers at 127.0.0.1:9: the scripted engine speaks, which is no language model." in said


async def test_something_else_on_the_port_is_no_ollama() -> None:
    other = await asyncio.to_thread(TinyServer, "127.0.0.1", free_port())
    try:
        assert await asyncio.to_thread(ollama.find, f"http://{other.host}:{other.port}") is None
    finally:
        await asyncio.to_thread(other.close)


async def test_an_ollama_that_hangs_is_none_within_seconds(server: OllamaServer) -> None:
    server.faults.hang = True
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(ollama.find, server.url, patience_s=0.3) is None


async def test_the_model_is_filled_in_wherever_it_is_named() -> None:
    rendered = serve_config.render(LOCAL_OLLAMA, host="127.0.0.1", port=8000, ollama_model="gemma3")
    pool, chat = rendered["applications"]
    assert pool["args"]["engine"]["model"] == chat["args"]["pools"]["ollama"]["model"] == "gemma3"


async def test_a_node_with_an_ollama_is_labelled_and_what_the_cluster_file_says_stands(server: OllamaServer) -> None:
    node, said = NodeSpec(address="10.0.0.2", labels={"aurora/gpu": "true"}), list[str]()
    labelled = await asyncio.to_thread(with_ollama, node, server.url, say=said.append)
    assert labelled.labels == {"aurora/gpu": "true", "aurora/ollama": "true"}
    assert (await asyncio.to_thread(with_ollama, node, "127.0.0.1:9", say=said.append)).labels == {"aurora/gpu": "true"}
    without = NodeSpec(address="10.0.0.2", labels={"aurora/ollama": "false"})
    assert await asyncio.to_thread(with_ollama, without, server.url, say=said.append) == without
    assert [line.split()[0] for line in said] == ["Ollama", "No"]


async def test_no_model_is_pulled_where_the_port_is_taken_anyway(server: OllamaServer, tmp_path: Path) -> None:
    other = await asyncio.to_thread(TinyServer, "127.0.0.1", free_port())
    settings = Settings(home=tmp_path, port=other.port, ollama_url=server.url, ollama_model="gemma3")
    try:
        with pytest.raises(LifecycleError, match=f"Port {other.port} is taken"):
            await asyncio.to_thread(bring_up, settings, None, wait=False, progress=Progress(Console(file=StringIO())))
    finally:
        await asyncio.to_thread(other.close)
    assert "gemma3:latest" not in server.models
