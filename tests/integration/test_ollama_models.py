"""The ollama engine and its models: checked and pulled at the start, kept loaded, and missed when they go."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from serve_app.chat.errors import EngineUnavailable
from serve_app.engines import OllamaEngine
from tests.support.ollama_engines import IMPATIENT, MODEL, engine_of, pieces_of, prompt_of, reply_of, started
from tests.support.ollama_server import OllamaServer
from tests.support.redis_process import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.integration
LOADED = f"{MODEL}:latest"


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    async with OllamaServer(MODEL, library=["phi4", "gemma3:4b"]) as server:
        yield server


async def not_started(engine: OllamaEngine) -> str:
    """Return why an engine cannot be started; the status says it, too."""
    with pytest.raises(EngineUnavailable) as caught:
        async with asyncio.timeout(10):
            await engine.start()
    assert engine.status.note == caught.value.message
    await engine.close()
    return caught.value.message


async def test_a_started_engine_has_its_model_loaded_for_ever_with_the_window_of_its_replies(server: OllamaServer) -> None:
    async with started(server) as engine:
        assert engine.status.models == (MODEL,)
        assert engine.status.note == ""
        assert engine.status.slots == 4
        window, until_ = server.loaded[LOADED]
        assert window == 8_192
        assert until_.year > 2100
        await reply_of(engine, prompt_of("Hello!"))
    assert server.counts.loads == {LOADED: 1}, "no reply has it loaded again"


async def test_how_long_a_model_stays_loaded_is_configured(server: OllamaServer) -> None:
    async with started(server, keep_alive_s=60) as engine:
        await reply_of(engine, prompt_of("Hello!"))
        assert server.counts.chats[-1]["keep_alive"] == 60
        assert server.loaded[LOADED][1].year < 2100


async def test_a_model_that_was_made_for_a_smaller_window_gets_that(caplog: pytest.LogCaptureFixture) -> None:
    async with OllamaServer(MODEL, context_length=2_048) as server, started(server) as engine:
        await reply_of(engine, prompt_of("Hello!"))
        assert server.counts.chats[-1]["options"]["num_ctx"] == 2_048
    assert "2048 tokens" in caplog.text


async def test_missing_models_are_pulled_and_the_status_and_the_log_say_how_far_it_is(
    server: OllamaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app.engines")
    server.faults.change({"pull_steps": 100, "pull_hangs_at": 43})
    engine = engine_of(server, models=["phi4", "gemma3:4b"])
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status.note == "pulling phi4: 42 %")
    assert not starting.done()
    with pytest.raises(EngineUnavailable, match="pulling phi4: 42 %"):
        await engine.check()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    server.faults.pull_hangs_at = None
    await engine.start()
    assert engine.status.note == ""
    assert set(server.models) >= {"phi4:latest", "gemma3:4b"}
    lines = [record.getMessage() for record in caplog.records if "phi4" in record.getMessage()]
    assert "Pulling phi4: 40 %." in lines
    assert len(lines) < 30, "some, not one for each line of the server"
    await engine.close()


async def test_a_pull_that_hangs_ends_the_start(server: OllamaServer) -> None:
    server.faults.pull_hangs_at = 4
    assert "hangs" in await not_started(engine_of(server, model="phi4", silence_s=0.5))


async def test_a_pull_that_fails_ends_the_start_and_says_why(server: OllamaServer) -> None:
    assert "file does not exist" in await not_started(engine_of(server, model="no-such"))
    server.faults.pull_error = "no space left on device"
    assert "no space left on device" in await not_started(engine_of(server, model="phi4"))


async def test_where_pulling_is_off_a_missing_model_says_how_to_get_it(server: OllamaServer) -> None:
    assert "`ollama pull phi4`" in await not_started(engine_of(server, model="phi4", pull=False))
    assert server.counts.requests["/api/pull"] == 0


async def test_a_server_that_is_not_there_or_hangs_or_fails_ends_the_start(server: OllamaServer) -> None:
    nobody = engine_of(server, url=f"http://127.0.0.1:{free_port()}")
    assert "does not answer" in await not_started(nobody)
    server.faults.hang = True
    assert "hangs" in await not_started(engine_of(server, check_s=0.5))
    server.faults.change({"hang": False, "status": 503})
    assert "failed" in await not_started(engine_of(server))


async def test_a_server_that_is_too_old_is_refused_and_one_built_by_hand_is_not() -> None:
    async with OllamaServer(MODEL, version="0.5.13") as old:
        assert "0.5.13" in await not_started(engine_of(old))
    for version in ("0.9.0", "0.30.1-rc2", "1.0.0", "0.0.0", "main-dirty"):
        async with OllamaServer(MODEL, version=version) as server, started(server) as engine:
            await engine.check()


async def test_a_slow_load_is_waited_for_and_the_status_says_so(server: OllamaServer) -> None:
    server.faults.load_s = 0.3
    engine = engine_of(server)
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status.note == f"loading {MODEL}")
    await starting
    assert engine.status.models == (MODEL,)
    await engine.close()


async def test_a_load_that_takes_for_ever_or_fails_ends_the_start(server: OllamaServer) -> None:
    server.faults.load_s = 60
    assert "did not load" in await not_started(engine_of(server, load_s=0.2))
    server.faults.change({"load_s": 0, "load_error": "model requires more system memory (9 GiB)"})
    assert "9 GiB" in await not_started(engine_of(server))


async def test_a_start_that_failed_may_be_tried_again(server: OllamaServer) -> None:
    engine = engine_of(server)
    server.faults.status = 500
    with pytest.raises(EngineUnavailable):
        await engine.start()
    server.faults.status = None
    await engine.start()
    await engine.check()
    assert engine.status.note == ""
    await engine.close()


async def test_a_check_is_cheap(server: OllamaServer) -> None:
    async with started(server) as engine:
        before = server.counts.requests.copy()
        await engine.check()
        assert server.counts.requests - before == {"/api/version": 1, "/api/tags": 1, "/api/ps": 1}


async def test_a_check_notices_a_server_that_died_hangs_or_lost_its_model_and_that_it_is_back(server: OllamaServer) -> None:
    async with started(server, **IMPATIENT) as engine:
        server.faults.hang = True
        with pytest.raises(EngineUnavailable, match="hangs"):
            await engine.check()
        assert engine.status.models == ()
        assert "hangs" in engine.status.note
        server.faults.hang = False
        await engine.check()
        assert engine.status.models == (MODEL,)
        assert engine.status.note == ""
        server.remove(MODEL)
        with pytest.raises(EngineUnavailable, match=rf"lost {MODEL}.*ollama pull"):
            await engine.check()
        server.models.append(LOADED)
        await server.kill()
        with pytest.raises(EngineUnavailable, match=r"does not answer|broke off"):
            await engine.check()


async def test_a_server_that_was_started_again_gets_its_model_loaded_again(server: OllamaServer) -> None:
    async with started(server) as engine:
        await server.kill()
        await server.start()
        server.faults.load_s = 0.2
        await engine.check()
        await until(lambda: engine.status.note == f"loading {MODEL}")
        await engine.check()
        await until(lambda: engine.status.models == (MODEL,))
        assert engine.status.note == ""
    assert server.counts.loads == {LOADED: 2}


async def test_a_reload_that_fails_is_told_and_tried_again(server: OllamaServer) -> None:
    async with started(server) as engine:
        server.loaded.clear()
        server.faults.load_error = "out of memory"
        await engine.check()
        await until(lambda: "out of memory" in engine.status.note)
        server.faults.load_error = ""
        await engine.check()
        await until(lambda: engine.status.models == (MODEL,))


async def test_closing_ends_a_reload(server: OllamaServer) -> None:
    async with started(server) as engine:
        server.loaded.clear()
        server.faults.load_s = 60
        await engine.check()
        before = asyncio.all_tasks()
    assert not [task for task in before if task.get_name() == "ollama-reload" and not task.done()]


async def test_a_server_of_another_version_is_asked_again_how_it_goes_on(server: OllamaServer) -> None:
    async with started(server) as engine:
        whole = await reply_of(engine, prompt_of("Hello!"))
        server.version, server.faults.prefix = "0.13.0", "trim"
        await engine.check()
        cut = whole.index(" ") + 1
        rest = await pieces_of(engine, prompt_of("Hello!"), said=whole[:cut])
        assert whole[:cut] + "".join(piece.text for piece in rest) == whole


async def test_a_proxy_in_the_environment_is_not_heeded(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OLLAMA_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with started(server) as engine:
        assert await reply_of(engine, prompt_of("Hello!"))
