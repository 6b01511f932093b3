"""What the ollama engine is tested against is tested itself: the stand-in for Ollama, over HTTP, and as a program of its own."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.support import ollama_replies
from tests.support.ollama_server import OllamaServer
from tests.support.redis_process import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.integration
PROJECT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello!"}]


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    async with OllamaServer("llama3.2") as server:
        yield server


@pytest.fixture
async def http(server: OllamaServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as client:
        yield client


async def chat(http: httpx.AsyncClient, messages: list[dict[str, str]] = HELLO, **fields: Any) -> list[dict[str, Any]]:
    answer = await http.post("/api/chat", json={"model": "llama3.2", "messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_streamed_or_not_a_reply_is_the_same(http: httpx.AsyncClient) -> None:
    lines = await chat(http)
    (whole,) = await chat(http, stream=False)
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == whole["done_reason"] == "stop"
    assert lines[-1]["eval_count"] == whole["eval_count"] == len(lines) - 1
    assert not whole["message"]["content"].isascii()


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_its_chunks_cut_characters_where_they_are_told_to(server: OllamaServer, size: int) -> None:
    body = {"model": "llama3.2", "messages": HELLO}
    async with aiohttp.ClientSession() as http:  # which the engine reads with, too
        whole = await (await http.post(f"{server.url}/api/chat", json=body)).read()
        server.faults.chunk_bytes = size
        chunks = [chunk async for chunk in (await http.post(f"{server.url}/api/chat", json=body)).content.iter_any()]
    assert [json.loads(line)["message"] for line in b"".join(chunks).splitlines()] == [
        json.loads(line)["message"] for line in whole.splitlines()
    ]
    begun = [chunk for chunk in chunks if chunk and 0x80 <= chunk[0] < 0xC0]
    assert begun, "some begin in the middle of a character"


async def test_num_predict_bounds_a_reply(http: httpx.AsyncClient) -> None:
    lines = await chat(http, options={"num_predict": 3})
    assert len(lines) == 4
    assert lines[-1]["done_reason"] == "length"


async def test_a_prompt_too_long_loses_its_oldest_messages_but_not_the_system_prompt(
    server: OllamaServer, http: httpx.AsyncClient
) -> None:
    long = [HELLO[0], *({"role": "user", "content": f"question {n} " * 20} for n in range(30)), HELLO[1]]
    (cut,) = await chat(http, long, stream=False, options={"num_ctx": 200})
    assert server.counts.truncated == 1
    assert cut["prompt_eval_count"] <= 200
    kept = next(n for n in range(len(long)) if ollama_replies.count([HELLO[0], *long[n:]]) <= 200)
    assert cut["message"]["content"] == ollama_replies.reply("llama3.2:latest", [HELLO[0], *long[kept:]])


async def test_a_client_that_leaves_ends_its_generation_at_once(server: OllamaServer, http: httpx.AsyncClient) -> None:
    for fault in ({"tokens_per_second": 5}, {"hang_after": 1, "tokens_per_second": None}):
        server.faults.change(fault)
        async with http.stream("POST", "/api/chat", json={"model": "llama3.2", "messages": HELLO}) as answer:
            await anext(answer.aiter_lines())
            assert server.counts.live == 1
        await until(lambda: server.counts.live == 0, timeout=0.5)


async def test_one_connection_serves_many_requests(server: OllamaServer, http: httpx.AsyncClient) -> None:
    for _ in range(50):
        assert (await http.get("/api/version")).json() == {"version": server.version}
        assert (await http.get("/nothing")).status_code == 404
        await chat(http)


async def test_it_runs_as_a_program_and_is_controlled_from_outside() -> None:
    port = free_port()
    command = ["-m", "tests.support.ollama_server", "--port", str(port), "--model", "phi4", "--tokens-per-second", "50"]
    program = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=PROJECT, stdout=asyncio.subprocess.PIPE)
    try:
        assert program.stdout is not None
        async with asyncio.timeout(20):
            assert b"phi4" in await program.stdout.readline()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as http:
            assert [one["name"] for one in (await http.get("/api/tags")).json()["models"]] == ["phi4:latest"]
            assert (await http.post("/control", json={"status": 503})).status_code == 200
            assert (await http.get("/api/version")).status_code == 503
            assert (await http.post("/control", json={"no such fault": 1})).status_code == 400
            await http.post("/control", json={"status": None})
            await http.post("/api/chat", json={"model": "phi4", "messages": HELLO})
            counts = (await http.get("/control")).json()
            assert (counts["live"], counts["chats"], counts["loads"]) == (0, 1, {"phi4:latest": 1})
    finally:
        program.kill()
        await program.communicate()
