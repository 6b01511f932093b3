"""The ollama engine keeps the promises of the port on the `ollama` of this machine, where there is one.

What a model says is not known beforehand, so some promises are asked for in a weaker form. That these tests would run, and would
fail, is shown with a program of that name that is the stand-in.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt
from serve_app.chat.errors import ContinuationRefused
from serve_app.chat.options import Options
from serve_app.engines import OllamaConfig, OllamaEngine
from tests.contracts.engine_contract import AnyEngineContract, Request, said_by, text_of
from tests.support.ollama_engines import prompt_of
from tests.support.ollama_server import OllamaServer
from tests.support.real_ollama import PULLED, NoModel, RealOllama, choose_model

pytestmark = pytest.mark.integration
PROJECT = Path(__file__).resolve().parents[2]
COUNT = prompt_of(
    "Count from 1 to 2000, one number a line. Leave none out, and say nothing else.", system="Do what you are told."
)
STORY = prompt_of("Tell me of a lighthouse and its keeper, in ten sentences.", system="You tell stories.")
LONG = Options(max_tokens=1_000, temperature=0)
SOME = Options(max_tokens=96, temperature=0, seed=7)


async def first_piece_after(engine: Engine, limit: float) -> float | None:
    """Return the seconds to the first piece of a short reply, nothing where it takes longer than `limit`."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit), aclosing(engine.generate(STORY, Options(max_tokens=1), Prefix(), run="r2")) as pieces:
            await anext(pieces)
    except TimeoutError:
        return None
    return time.monotonic() - began


@pytest.mark.timeout(900)  # a model may have to be pulled
class TestRealOllama(AnyEngineContract):
    """On a server of the tests' own that makes one reply at a time: it is idle if the next one begins at once."""

    first_line_s: ClassVar[float] = 10.0

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls) -> str:
        found = shutil.which("ollama")
        if found is None:
            pytest.skip("there is no `ollama` on this machine")
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def ollama(cls, program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealOllama]:
        with RealOllama(program, tmp_path_factory.mktemp("ollama")) as server:
            yield server

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, ollama: RealOllama) -> str:
        try:
            return asyncio.run(choose_model(ollama.url, os.environ.get("AURORA_TEST_OLLAMA_MODEL", "")))
        except NoModel as why:
            pytest.skip(str(why))

    @pytest.fixture
    async def engine(self, ollama: RealOllama, model: str) -> AsyncIterator[Engine]:
        config = OllamaConfig(model=model, pull=False, context_window=2_048, slots=1, first_line_s=self.first_line_s)
        engine = OllamaEngine(config, url=ollama.address)
        await engine.start()
        usual = await first_piece_after(engine, self.first_line_s)
        assert usual is not None
        self.server, self.soon = ollama, 1.0 + 2 * usual
        yield engine
        ollama.thaw()
        await engine.close()

    async def idle(self, engine: Engine) -> bool:
        """Within a second what was stopped is, and the next reply begins."""
        self.server.thaw()
        return await first_piece_after(engine, self.soon) is not None

    async def silence(self) -> bool:
        self.server.freeze()
        return True

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        return [(Prompt(prompt.personality, prompt.messages, "no-such-model"), options, Prefix())]

    async def test_while_it_is_at_a_long_reply_it_is_not_idle(self, engine: Engine) -> None:
        await self.pace(5)
        async with aclosing(engine.generate(COUNT, LONG, Prefix(), run="r1")) as pieces:
            await anext(pieces)
            assert not await self.idle(engine)

    async def test_a_long_reply_that_is_closed_ends_within_a_second(self, engine: Engine) -> None:
        await self.pace(5)
        async with aclosing(engine.generate(COUNT, LONG, Prefix(), run="r1")) as pieces:
            await anext(pieces)
        assert await self.idle(engine)

    async def test_a_long_reply_whose_reader_is_cancelled_ends_within_a_second(self, engine: Engine) -> None:
        await self.pace(5)
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(COUNT, LONG, Prefix(), run="r1"):
                begun.set()

        reader = asyncio.create_task(read())
        await begun.wait()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert await self.idle(engine)

    async def test_a_continuation_goes_on_and_does_not_begin_again(self, engine: Engine) -> None:
        whole = text_of(await said_by(engine, STORY, SOME))
        refused = 0
        for quarters in (1, 2, 3):
            said = whole[: len(whole) * quarters // 4]
            try:
                rest = await self.reply(engine, STORY, SOME, said)
            except ContinuationRefused:
                refused += 1
                continue
            assert rest.strip()
            assert not rest.lstrip().startswith(said.strip()[:20])
        if refused:
            assert refused == 3, "a model that goes on does so wherever it is cut"
            pytest.skip(f"{engine.info.model} goes on from nothing, and says so: name another one in AURORA_TEST_OLLAMA_MODEL")

    async def test_a_continuation_of_the_whole_reply_does_not_say_it_again(self, engine: Engine) -> None:
        whole = text_of(await said_by(engine, STORY, SOME))
        try:
            rest = await self.reply(engine, STORY, SOME, whole)
        except ContinuationRefused:
            return
        assert not rest.lstrip().startswith(whole.strip()[:20])

    async def test_two_replies_at_the_same_time_do_not_mix(self, engine: Engine) -> None:
        words = ("APPLE", "RIVER")
        prompts = [prompt_of(f"Say the word {word}, and nothing else.", system="Do what you are told.") for word in words]
        apple, river = await asyncio.gather(
            *(self.reply(engine, prompt, Options(max_tokens=8, temperature=0)) for prompt in prompts)
        )
        assert apple.strip()
        assert river.strip()
        assert "RIVER" not in apple.upper()
        assert "APPLE" not in river.upper()


class TestRealOllamaIsTheStandIn(TestRealOllama):
    """The same tests, on a program called `ollama` on the PATH; and what they would notice."""

    first_line_s: ClassVar[float] = 3.0

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        folder = tmp_path_factory.mktemp("path")
        program = folder / "ollama"
        program.write_text(
            f'#!/bin/sh\n[ "$*" = serve ] || exit 1\nexport PYTHONPATH={PROJECT}\n'
            f'exec {sys.executable} -m tests.support.ollama_server --model llama3.2 --parallel "$OLLAMA_NUM_PARALLEL" '
            '--host "${OLLAMA_HOST%:*}" --port "${OLLAMA_HOST#*:}"\n'
        )
        program.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", str(folder), prepend=os.pathsep)
            found = shutil.which("ollama")
            assert found == str(program)
            yield found

    @pytest.fixture(autouse=True)
    async def whole_again(self, ollama: RealOllama) -> AsyncIterator[None]:
        yield
        await self.control(ollama, tokens_per_second=None, slot_kept_s=0, prefix="continue", renders=True)

    async def control(self, ollama: RealOllama, **faults: object) -> None:
        async with httpx.AsyncClient(base_url=ollama.url, trust_env=False) as http:
            (await http.post("/control", json=faults)).raise_for_status()

    async def pace(self, per_second: float | None) -> None:
        await self.control(self.server, tokens_per_second=per_second)

    async def test_a_server_that_goes_on_with_what_was_stopped_is_noticed(self, engine: Engine) -> None:
        await self.control(self.server, slot_kept_s=self.soon + 1)
        with pytest.raises(AssertionError):
            await self.test_a_long_reply_that_is_closed_ends_within_a_second(engine)

    async def test_a_model_that_goes_on_from_nothing_is_a_skip_that_says_so(self, engine: Engine) -> None:
        await self.control(self.server, prefix="refuse")
        with pytest.raises(pytest.skip.Exception, match="goes on from nothing"):
            await self.test_a_continuation_goes_on_and_does_not_begin_again(engine)


async def test_the_smallest_model_that_can_chat_is_taken_unless_one_is_named() -> None:
    async with OllamaServer("large", "small", "all-minilm") as server:
        server.sizes |= {"large:latest": 2_000_000_000, "small:latest": 400_000_000, "all-minilm:latest": 50_000_000}
        server.embedding.add("all-minilm:latest")
        assert await choose_model(server.url) == "small:latest"
        assert await choose_model(server.url, "large") == "large"
        with pytest.raises(NoModel, match="phi4 could not be pulled"):
            await choose_model(server.url, "phi4")


async def test_where_all_are_too_large_or_none_is_there_a_small_one_is_pulled_or_it_is_said_why_not() -> None:
    async with OllamaServer("huge", library=[PULLED]) as server:
        server.sizes["huge:latest"] = 40_000_000_000
        assert await choose_model(server.url) == PULLED
        assert PULLED in server.models
    async with OllamaServer() as offline:
        offline.faults.pull_error = "dial tcp: lookup registry.ollama.ai: no such host"
        with pytest.raises(NoModel, match=r"no such host.*AURORA_TEST_OLLAMA_MODEL"):
            await choose_model(offline.url)


def test_a_program_that_does_not_serve_fails_with_what_it_said(tmp_path: Path) -> None:
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\necho something is broken here >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(AssertionError, match="something is broken here"):
        RealOllama(str(program), tmp_path).__enter__()
