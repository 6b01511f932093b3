"""The processes behind the engine vllm: a death is noticed at once, and none is left behind, whoever dies."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve_app.chat.engine import Engine, Prefix
from serve_app.chat.errors import EngineUnavailable
from serve_app.engines import VllmConfig, VllmEngine, make_engine
from serve_app.engines.vllm_processes import OWNER, end_orphans
from tests.contracts.engine_contract import said_by, text_of
from tests.support.waiting import until
from tests.vllm.engines import COLD, LONG, ask, config, engine_processes

AT_ONCE_S = 2.0
"""Seconds that noticing a death may take on a busy machine; it takes about 50 ms on an idle one."""

PREDECESSOR = """
import asyncio, sys
from serve_app.engines import VllmConfig, VllmEngine

async def main():
    engine = VllmEngine(VllmConfig.model_validate_json(sys.argv[1]))
    await engine.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


async def failing(engine: Engine, run: str) -> EngineUnavailable:
    """Return the error with which a reply ends."""
    with pytest.raises(EngineUnavailable) as caught:
        await said_by(engine, ask("Hello"), LONG, run=run)
    return caught.value


async def test_the_death_of_the_engine_process_ends_replies_at_once_and_the_engine_says_that_it_is_dead(
    character_engine: VllmEngine,
) -> None:
    [core] = character_engine._processes.alive()
    replies = [character_engine.generate(ask("Hello"), LONG, Prefix(), run=f"r{at}") for at in range(3)]
    for pieces in replies:
        await anext(pieces)
    os.kill(core.pid, signal.SIGKILL)
    died = time.monotonic()
    for pieces in replies:
        with pytest.raises(EngineUnavailable, match="gone"):
            async for _ in pieces:
                pass
    with pytest.raises(EngineUnavailable):
        await character_engine.check()
    assert time.monotonic() - died < AT_ONCE_S
    await failing(character_engine, "later")
    assert character_engine.status.models == ()
    assert character_engine.status.busy == 0
    await character_engine.close()
    assert core not in engine_processes()


async def test_an_engine_process_that_hangs_is_told_from_one_that_is_slow_by_the_gap_between_tokens(
    byte_engine: VllmEngine,
) -> None:
    impatient = VllmEngine(byte_engine._config.model_copy(update={"silence_timeout_s": 0.5}))
    impatient._model = byte_engine._model
    processes = byte_engine._processes.alive()
    pieces = impatient.generate(ask("Hello"), LONG, Prefix(), run="hangs")
    await anext(pieces)
    for process in processes:
        process.suspend()
    try:
        with pytest.raises(EngineUnavailable, match=r"0\.5 s"):
            async for _ in pieces:
                pass
        with pytest.raises(EngineUnavailable, match=r"0\.5 s"):
            await impatient.check()
    finally:
        for process in processes:
            process.resume()
    assert text_of(await said_by(byte_engine, ask("Hello"), COLD))


async def test_closing_leaves_no_process_and_fails_the_replies_under_way(byte_engine: VllmEngine) -> None:
    before = byte_engine._processes.alive()
    assert before
    reply = asyncio.create_task(failing(byte_engine, "under way"))
    await until(lambda: byte_engine.status.busy == 1)
    await byte_engine.close()
    await reply
    assert [process for process in before if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    await byte_engine.close()
    with pytest.raises(EngineUnavailable, match="not loaded"):
        await byte_engine.check()


async def test_what_a_killed_predecessor_left_is_ended_by_whoever_starts_next(config_of_bytes: VllmConfig) -> None:
    command = [sys.executable, "-c", PREDECESSOR, config_of_bytes.model_dump_json()]
    predecessor = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert predecessor.stdout is not None
        while (line := await predecessor.stdout.readline()) != b"ready\n":  # before it, vLLM says a lot
            assert line, "it ended"
        left = [child for child in psutil.Process(predecessor.pid).children(recursive=True) if OWNER in child.environ()]
        assert left
        assert await asyncio.to_thread(end_orphans) == [], "its owner lives"
    finally:
        predecessor.kill()
        await until(lambda: not psutil.pid_exists(predecessor.pid))
        ended = await asyncio.to_thread(end_orphans)
        await predecessor.wait()  # for its pipe too, which what it left behind had open
    assert [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert set(ended) <= {child.pid for child in left}


async def test_a_model_that_is_not_there_is_said_plainly_and_leaves_nothing(tmp_path: Path) -> None:
    engine = make_engine(config(tmp_path))
    before = engine_processes()
    with pytest.raises(EngineUnavailable, match="could not be loaded"):
        await engine.start()
    assert engine.status.note == ""
    assert set(engine_processes()) <= set(before)
    await engine.close()


async def test_loading_that_takes_too_long_is_given_up_and_leaves_nothing(byte_folder: Path) -> None:
    engine = make_engine(config(byte_folder, start_timeout_s=3.0))
    before = engine_processes()
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status.note == "loading tiny-bytes")
    with pytest.raises(EngineUnavailable, match="within 3 s"):
        await starting
    await until(lambda: set(engine_processes()) <= set(before), timeout=60)
    with pytest.raises(EngineUnavailable):
        await engine.check()
    await engine.close()
