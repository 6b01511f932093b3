"""The ollama engine and its server: what it asks for, how it stops and goes on, and every way in which the server can fail."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from serve_app.chat.engine import Engine, EnginePiece, Prefix
from serve_app.chat.errors import ContinuationRefused, EngineError, EngineRejected, EngineUnavailable, ModelNotServed
from serve_app.chat.options import Options
from serve_app.engines import OllamaConfig, OllamaEngine
from tests.support import ollama_replies
from tests.support.ollama_engines import IMPATIENT, MODEL, engine_of, pieces_of, prompt_of, reply_of, started
from tests.support.ollama_server import OllamaServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration
HELLO = prompt_of("Hello Robbie!")
NOTHING = Options.model_validate({})


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    async with OllamaServer(MODEL, "gemma3:4b", thinking=["qwen3"]) as server:
        yield server


@pytest.fixture
async def engine(server: OllamaServer) -> AsyncIterator[Engine]:
    async with started(server, models=["gemma3:4b", "qwen3"]) as engine:
        yield engine


async def failing(engine: Engine, said: str = "") -> tuple[str, EngineError]:
    """Return what was yielded of a reply after `said`, and the error that it ended with."""
    heard = ""
    try:
        async with asyncio.timeout(10):
            async for piece in engine.generate(HELLO, NOTHING, Prefix(said), run="r1"):
                heard += piece.text
    except EngineError as error:
        return heard, error
    raise AssertionError(f"no error, but {heard!r}")


def answer(server: OllamaServer) -> str:
    """Return the whole reply to what the server was asked last."""
    asked = server.counts.chats[-1]
    messages = [one for one in asked["messages"] if one["role"] != "assistant" or one is not asked["messages"][-1]]
    return ollama_replies.reply(f"{asked['model']}" + ("" if ":" in asked["model"] else ":latest"), messages)


async def test_it_streams_a_piece_for_each_of_the_servers_and_the_last_one_has_its_counts(
    server: OllamaServer, engine: Engine
) -> None:
    pieces = await pieces_of(engine, HELLO)
    whole = answer(server)
    assert "".join(piece.text for piece in pieces) == whole
    assert [piece.text for piece in pieces if piece.text] == ollama_replies.tokens_of(whole)
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(ollama_replies.tokens_of(whole))
    assert usage.prompt_tokens == ollama_replies.count(server.counts.chats[-1]["messages"])


async def test_the_first_piece_comes_while_the_server_is_still_at_it(server: OllamaServer, engine: Engine) -> None:
    server.faults.hang_after = 1
    async with aclosing(engine.generate(HELLO, NOTHING, Prefix(), run="r1")) as pieces:
        assert (await anext(pieces)).text
        assert server.counts.live == 1
        assert engine.status.busy == 1


async def test_options_reach_the_server_under_its_names(server: OllamaServer, engine: Engine) -> None:
    options = Options.model_validate(
        {"temperature": 0.3, "top_p": 0.9, "seed": 7, "max_tokens": 5, "words": 9, "divergent": True}
    )
    assert len(ollama_replies.tokens_of(await reply_of(engine, HELLO, options))) == 5
    asked = server.counts.chats[-1]
    assert asked["options"] == {"num_ctx": 8_192, "num_predict": 5, "temperature": 0.3, "top_p": 0.9, "seed": 7}
    assert asked["keep_alive"] == -1
    assert asked["messages"][0] == {"role": "system", "content": HELLO.personality.system}
    assert asked["messages"][1:] == [{"role": "user", "content": "Hello Robbie!"}]
    assert "think" not in asked


async def test_where_nothing_is_asked_for_the_model_keeps_its_own_settings(server: OllamaServer, engine: Engine) -> None:
    await reply_of(engine, HELLO)
    assert server.counts.chats[-1]["options"] == {"num_ctx": 8_192, "num_predict": 1_024}


async def test_a_prompt_names_the_model_and_none_but_those_of_the_pool(server: OllamaServer, engine: Engine) -> None:
    await reply_of(engine, prompt_of("Hello!", model="gemma3:4b"))
    assert server.counts.chats[-1]["model"] == "gemma3:4b"
    await reply_of(engine, prompt_of("Hello!", model="llama3.2:latest"))
    assert server.counts.chats[-1]["model"] == MODEL
    assert engine.status.models == (MODEL, "gemma3:4b")
    with pytest.raises(ModelNotServed, match=r"no model mistral.*llama3\.2, gemma3:4b, qwen3"):
        await reply_of(engine, prompt_of("Hello!", model="mistral"))


async def test_history_is_cut_oldest_turns_first_and_the_system_prompt_stays(server: OllamaServer) -> None:
    turns = [text for number in range(60) for text in (f"question {number} " * 8, f"reply {number} " * 8)]
    async with started(server, context_window=1_024) as engine:
        await reply_of(engine, prompt_of(*turns, "and now?"), Options(max_tokens=100))
    asked = server.counts.chats[-1]["messages"]
    assert asked[0] == {"role": "system", "content": HELLO.personality.system}
    kept = [message["content"] for message in asked[1:]]
    assert kept == [*turns, "and now?"][-len(kept) :], "the newest ones, none left out"
    assert asked[1]["role"] == "user", "whole turns"
    assert 9 < len(kept) < len(turns)
    assert server.counts.truncated == 0, "so that the server has nothing to cut"


async def test_personalities_that_want_different_windows_share_a_loaded_model(server: OllamaServer, engine: Engine) -> None:
    turns = [text for number in range(60) for text in (f"question {number} " * 8, f"reply {number} " * 8)]
    for window in (None, 2_048, None):
        await reply_of(engine, prompt_of(*turns, "and now?", context_window=window), Options(max_tokens=100))
    kept = [len(chat["messages"]) for chat in server.counts.chats]
    assert kept[1] < kept[0] == kept[2]
    assert server.counts.loads == {"llama3.2:latest": 1}


async def test_what_the_server_counts_makes_the_next_prompts_fit_better(server: OllamaServer) -> None:
    turns = ["1 2 3 4 5 6 7 8 9 " * 10] * 81  # a token for each two characters: more than the estimate assumes
    async with started(server, context_window=4_096) as engine:
        cut = []
        for _ in range(4):
            await reply_of(engine, prompt_of(*turns), Options(max_tokens=50))
            cut.append(server.counts.truncated)
        kept = [len(asked["messages"]) for asked in server.counts.chats]
    assert kept[0] > kept[-1]
    assert kept == sorted(kept, reverse=True)
    assert cut[0] == 1, "the first estimate was too low"
    assert cut[-1] == cut[-2], "the last one was not"


async def test_a_message_that_no_window_holds_is_refused_before_the_server_is_asked(server: OllamaServer, engine: Engine) -> None:
    with pytest.raises(EngineRejected, match="shorter message"):
        await reply_of(engine, prompt_of("word " * 20_000))
    assert not server.counts.chats


async def test_one_connection_after_the_other_serves_many_replies(server: OllamaServer, engine: Engine) -> None:
    before = server.connections
    for _ in range(10):
        await reply_of(engine, HELLO)
    assert server.connections - before <= 1


async def test_thinking_is_no_reply_but_a_sign_of_life(server: OllamaServer) -> None:
    async with started(server, model="qwen3", think=True) as engine:
        pieces = await pieces_of(engine, HELLO)
    assert server.counts.chats[-1]["think"] is True
    assert "".join(piece.text for piece in pieces) == answer(server)
    thoughts = len(ollama_replies.thoughts(server.counts.chats[-1]["messages"]))
    assert pieces[:thoughts] == [EnginePiece("")] * thoughts
    assert pieces[thoughts].text


async def test_a_model_that_can_think_does_not_unless_it_is_configured(server: OllamaServer, engine: Engine) -> None:
    await reply_of(engine, prompt_of("Hello!", model="qwen3"))
    assert server.counts.chats[-1]["think"] is False


@pytest.mark.parametrize("think", [True, "high"])
async def test_a_continuation_is_not_thought_about(server: OllamaServer, think: bool | str) -> None:
    async with started(server, model="qwen3", think=think) as engine:
        whole = await reply_of(engine, HELLO)
        assert whole[:30] + await reply_of(engine, HELLO, said=whole[:30]) == whole
    asked = server.counts.chats[-1]
    assert asked["think"] is False
    assert asked["messages"][-1] == {"role": "assistant", "content": whole[:30]}


@pytest.mark.parametrize("fault", [{"prefix": "refuse"}, {"prefix": "restart"}, {"thinks_anyway": True}], ids=json.dumps)
@pytest.mark.parametrize("renders", [True, False], ids=["a server that tells", "a server that does not tell"])
async def test_a_model_that_does_not_go_on_says_nothing_twice_and_is_refused(
    server: OllamaServer, fault: dict[str, object], renders: bool
) -> None:
    async with started(server, model="qwen3") as engine:
        whole = await reply_of(engine, HELLO)
    server.faults.change({**fault, "renders": renders})
    async with started(server, model="qwen3") as engine:
        for cut in (13, len(whole) // 2, len(whole)):
            heard, error = await failing(engine, said=whole[:cut])
            assert heard == ""
            assert isinstance(error, ContinuationRefused)
            assert "again" in error.message
    await until(lambda: server.counts.live == 0, timeout=1.0)


async def test_a_model_whose_prompt_is_closed_is_not_even_asked(server: OllamaServer) -> None:
    server.faults.prefix = "restart"
    async with started(server) as engine:
        await failing(engine, said="Something")
    assert not server.counts.chats


async def test_max_tokens_holds_over_a_takeover(server: OllamaServer, engine: Engine) -> None:
    options = Options(max_tokens=8)
    whole = await reply_of(engine, HELLO, options)
    begun = "".join(ollama_replies.tokens_of(whole)[:5])
    assert begun + await reply_of(engine, HELLO, options, said=begun) == whole
    asked = len(server.counts.chats)
    rest = await pieces_of(engine, HELLO, options, said=whole)
    assert [piece.text for piece in rest] == [""], "all of it was said"
    assert rest[0].usage is not None
    assert rest[0].usage.completion_tokens == 8
    assert len(server.counts.chats) == asked


async def test_the_usage_of_a_continued_reply_counts_all_of_it(server: OllamaServer, engine: Engine) -> None:
    whole = await pieces_of(engine, HELLO)
    text = "".join(piece.text for piece in whole)
    begun = " ".join(text.split(" ")[:4])
    rest = await pieces_of(engine, HELLO, said=begun)
    assert whole[-1].usage is not None
    assert rest[-1].usage is not None
    assert abs(rest[-1].usage.completion_tokens - whole[-1].usage.completion_tokens) <= 2
    assert abs(rest[-1].usage.prompt_tokens - whole[-1].usage.prompt_tokens) <= 2


async def test_without_the_servers_counts_the_usage_is_estimated(server: OllamaServer, engine: Engine) -> None:
    server.faults.no_prompt_count = True
    usage = (await pieces_of(engine, HELLO))[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 10


FAILURES: dict[str, tuple[dict[str, object], type[EngineError], str]] = {
    "an error in the middle": ({"error_after": 4}, EngineUnavailable, "illegal memory access"),
    "an abrupt close": ({"close_after": 4}, EngineUnavailable, "broke off"),
    "an end without done": ({"end_after": 4}, EngineUnavailable, "before its end"),
    "an end in the middle of a line": ({"split_line_after": 4}, EngineUnavailable, "broke off"),
    "a hang": ({"hang_after": 4}, EngineUnavailable, "hangs"),
}


@pytest.mark.parametrize(("faults", "kind", "told"), FAILURES.values(), ids=FAILURES)
async def test_what_breaks_a_reply_is_an_error_and_what_was_said_stands(
    server: OllamaServer, faults: dict[str, object], kind: type[EngineError], told: str
) -> None:
    async with started(server, **(IMPATIENT if "hang_after" in faults else {})) as engine:
        whole = await reply_of(engine, HELLO)
        server.faults.change(faults)
        heard, error = await failing(engine)
        assert type(error) is kind
        assert told in error.message
        assert heard == "".join(ollama_replies.tokens_of(whole)[:4])
        server.faults.change(dict.fromkeys(faults))
        assert heard + await reply_of(engine, HELLO, said=heard) == whole, "another attempt goes on from there"


REFUSALS: dict[str, tuple[dict[str, object], type[EngineError], str]] = {
    "503": ({"status": 503}, EngineUnavailable, "the server says no"),
    "500": ({"status": 500}, EngineUnavailable, "the server says no"),
    "400": ({"status": 400}, EngineRejected, "does not take"),
    "401": ({"status": 401}, EngineUnavailable, "the server says no"),
    "a load that fails": ({"load_error": "model requires more system memory"}, EngineUnavailable, "more system memory"),
    "a prompt too long": ({"load_error": "the input exceeds the context length"}, EngineRejected, "shorter"),
    "nothing but a load": ({"done_reason": "load"}, EngineUnavailable, "only loaded"),
    "a hang at once": ({"hang": True}, EngineUnavailable, "hangs"),
}


@pytest.mark.parametrize(("faults", "kind", "told"), REFUSALS.values(), ids=REFUSALS)
async def test_a_server_that_does_not_answer_is_an_error_that_says_why(
    server: OllamaServer, faults: dict[str, object], kind: type[EngineError], told: str
) -> None:
    async with started(server, **(IMPATIENT if "hang" in faults else {})) as engine:
        server.faults.change(faults)
        heard, error = await failing(engine)
        assert type(error) is kind
        assert told in error.message
        assert heard == ""
        assert engine.status.busy == 0


async def test_what_is_too_long_with_what_was_said_may_be_gone_on_from_elsewhere(server: OllamaServer, engine: Engine) -> None:
    server.faults.load_error = "the input exceeds the context length"
    _, error = await failing(engine, said="It was a dark and stormy night")
    assert isinstance(error, ContinuationRefused)


async def test_a_server_that_dies_during_a_reply_and_one_that_is_gone(server: OllamaServer, engine: Engine) -> None:
    server.faults.hang_after = 2
    pieces = engine.generate(HELLO, NOTHING, Prefix(), run="r1")
    assert (await anext(pieces)).text
    await server.kill()
    with pytest.raises(EngineUnavailable, match=r"broke off|ended its answer"):
        async for _ in pieces:
            pass
    _, error = await failing(engine)
    assert isinstance(error, EngineUnavailable)
    assert "does not answer" in error.message
    assert "AURORA_OLLAMA_URL" in error.message


async def test_a_model_that_vanished_is_an_error_that_says_how_to_get_it(server: OllamaServer, engine: Engine) -> None:
    server.remove(MODEL)
    _, error = await failing(engine)
    assert isinstance(error, EngineUnavailable)
    assert f"ollama pull {MODEL}" in error.message


async def test_an_engine_that_is_not_started_or_closed_says_so(server: OllamaServer) -> None:
    engine = engine_of(server)
    for _ in range(2):
        _, error = await failing(engine)
        assert isinstance(error, EngineUnavailable)
        assert "Start it" in error.message
        with pytest.raises(EngineUnavailable):
            await engine.check()
        await engine.start()
        await engine.close()


async def test_a_server_is_found_by_an_address_without_http_too(server: OllamaServer) -> None:
    engine = OllamaEngine(OllamaConfig(model=MODEL), url=server.url.removeprefix("http://"))
    try:
        await engine.start()
        assert await reply_of(engine, prompt_of("Hello"))
    finally:
        await engine.close()
