"""The openai_compatible engine and its server: what it asks for, how it stops and goes on, and every way the server can fail."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from serve_app.chat.engine import Engine, EnginePiece, Prefix
from serve_app.chat.errors import (
    ContinuationRefused,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    ModelNotServed,
)
from serve_app.chat.options import Options
from serve_app.engines.token_estimate import least_tokens
from tests.support import ollama_replies
from tests.support.ollama_engines import pieces_of, prompt_of, reply_of
from tests.support.openai_engines import MODEL, engine_of, started
from tests.support.openai_server import OpenAIServer
from tests.support.waiting import until

pytestmark = pytest.mark.integration
HELLO = prompt_of("Hello Robbie!")
NOTHING = Options.model_validate({})


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(MODEL, "gemma-3", thinking=["qwen3"]) as server:
        yield server


@pytest.fixture
async def engine(server: OpenAIServer) -> AsyncIterator[Engine]:
    async with started(server, models=["gemma-3", "qwen3"]) as engine:
        yield engine


async def failing(engine: Engine, said: str = "", model: str = "") -> tuple[str, EngineError]:
    """Return what was yielded of a reply after `said`, and the error that it ended with."""
    heard = ""
    try:
        async with asyncio.timeout(10):
            async for piece in engine.generate(prompt_of("Hello Robbie!", model=model), NOTHING, Prefix(said), run="r1"):
                heard += piece.text
    except EngineError as error:
        return heard, error
    raise AssertionError(f"no error, but {heard!r}")


def answer(server: OpenAIServer) -> str:
    """Return the whole reply to what the server was asked last."""
    asked = server.counts.chats[-1]
    messages = asked["messages"][:-1] if asked["messages"][-1]["role"] == "assistant" else asked["messages"]
    return ollama_replies.reply(asked["model"], messages)


async def test_it_streams_a_piece_for_each_of_the_servers_and_the_last_one_has_its_counts(
    server: OpenAIServer, engine: Engine
) -> None:
    pieces = await pieces_of(engine, HELLO)
    assert [piece.text for piece in pieces[:-1]] == ollama_replies.tokens_of(answer(server))
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(pieces) - 1
    assert usage.prompt_tokens == ollama_replies.count(server.counts.chats[-1]["messages"])


async def test_without_the_servers_counts_the_usage_is_counted_here(server: OpenAIServer, engine: Engine) -> None:
    server.faults.no_usage = True
    pieces = await pieces_of(engine, HELLO)
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(pieces) - 1
    assert usage.prompt_tokens > 10


async def test_the_first_piece_comes_while_the_server_is_still_at_it(server: OpenAIServer, engine: Engine) -> None:
    server.faults.hang_after = 1
    async with aclosing(engine.generate(HELLO, NOTHING, Prefix(), run="r1")) as pieces:
        assert (await anext(pieces)).text
        assert (server.counts.live, engine.status.busy) == (1, 1)


async def test_options_and_what_the_configuration_adds_reach_the_server(server: OpenAIServer) -> None:
    options = Options.model_validate({"temperature": 0.3, "top_p": 0.9, "seed": 7, "max_tokens": 5, "words": 9})
    async with started(server, extra_body={"min_p": 0.1, "temperature": 1.5}) as engine:
        assert len(ollama_replies.tokens_of(await reply_of(engine, HELLO, options))) == 5
        asked = server.counts.chats[-1]
        messages = [{"role": "system", "content": HELLO.personality.system}, {"role": "user", "content": "Hello Robbie!"}]
        assert asked == {
            "model": MODEL,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
            "temperature": 0.3,
            "top_p": 0.9,
            "seed": 7,
            "min_p": 0.1,
        }
        await reply_of(engine, HELLO)
        assert server.counts.chats[-1]["temperature"] == 1.5, "the configuration's, where nothing was asked for"
        assert "seed" not in server.counts.chats[-1]


async def test_messages_of_one_speaker_in_a_row_become_one(server: OpenAIServer, engine: Engine) -> None:
    twice = prompt_of("First", "Reply", "Second")
    twice = type(twice)(twice.personality, (twice.messages[0], twice.messages[2]), "")
    await reply_of(engine, twice)
    assert server.counts.chats[-1]["messages"][1:] == [{"role": "user", "content": "First\n\nSecond"}]


async def test_a_prompt_names_the_model_and_none_but_those_of_the_pool(server: OpenAIServer, engine: Engine) -> None:
    await reply_of(engine, prompt_of("Hello!", model="gemma-3"))
    assert server.counts.chats[-1]["model"] == "gemma-3"
    assert engine.status.models == (MODEL, "gemma-3", "qwen3")
    with pytest.raises(ModelNotServed, match=r"no model mistral.*gemma-3, qwen3"):
        await reply_of(engine, prompt_of("Hello!", model="mistral"))


@pytest.mark.parametrize("told_by", ["the server", "the configuration", "the personality"])
async def test_history_is_cut_oldest_turns_first_so_that_the_server_need_not_refuse_it(told_by: str) -> None:
    turns = [text for number in range(60) for text in (f"question {number} " * 8, f"reply {number} " * 8)]
    window = {"context_window": 1_024} if told_by == "the configuration" else {}
    wanted = 1_024 if told_by == "the personality" else None
    server = OpenAIServer(MODEL, context_length=1_024, tells_length=told_by == "the server")
    async with server, started(server, **window) as engine:
        await reply_of(engine, prompt_of(*turns, "and now?", context_window=wanted), Options(max_tokens=100))
        kept = [message["content"] for message in server.counts.chats[-1]["messages"][1:]]
        assert kept == [*turns, "and now?"][-len(kept) :], "the newest ones, none left out"
        assert 9 < len(kept) < len(turns)


async def test_thinking_is_no_reply_but_a_sign_of_life(server: OpenAIServer, engine: Engine) -> None:
    pieces = await pieces_of(engine, prompt_of("Hello Robbie!", model="qwen3"))
    assert "".join(piece.text for piece in pieces) == answer(server)
    thoughts = len(ollama_replies.thoughts(server.counts.chats[-1]["messages"]))
    assert pieces[:thoughts] == [EnginePiece("")] * thoughts
    assert pieces[thoughts].text


async def test_comments_between_the_pieces_are_signs_of_life(server: OpenAIServer, engine: Engine) -> None:
    server.faults.comments = True
    pieces = await pieces_of(engine, HELLO)
    assert "".join(piece.text for piece in pieces) == answer(server)
    assert sum(not piece.text for piece in pieces[:-1]) == sum(bool(piece.text) for piece in pieces)


# Going on from what was said


async def test_a_prefix_goes_as_a_trailing_message_without_the_whitespace_at_its_end(
    server: OpenAIServer, engine: Engine
) -> None:
    whole = await reply_of(engine, HELLO)
    said = whole[: whole.index("\n\n") + 1]
    assert said + await reply_of(engine, HELLO, said=said) == whole
    asked = server.counts.chats[-1]
    assert asked["messages"][-1] == {"role": "assistant", "content": said.rstrip()}
    assert not {"continue_final_message", "add_generation_prompt"} & asked.keys()


async def test_a_vllm_server_is_told_to_go_on() -> None:
    async with OpenAIServer(MODEL, continues="vllm") as server, started(server) as engine:
        whole = await reply_of(engine, HELLO)
        assert not {"continue_final_message", "add_generation_prompt"} & server.counts.chats[-1].keys()
        assert whole[:30] + await reply_of(engine, HELLO, said=whole[:30]) == whole
        asked = server.counts.chats[-1]
        assert asked["continue_final_message"] is True
        assert asked["add_generation_prompt"] is False


async def test_whitespace_alone_is_no_beginning_to_go_on_from(server: OpenAIServer, engine: Engine) -> None:
    assert await reply_of(engine, HELLO, said="\n ") == answer(server)
    assert server.counts.chats[-1]["messages"][-1]["role"] == "user"


async def test_a_server_that_does_not_go_on_is_not_asked_to(server: OpenAIServer) -> None:
    async with started(server, continuation="none") as engine:
        assert engine.info.continues_by == "nothing"
        heard, error = await failing(engine, said="H")
    assert heard == ""
    assert isinstance(error, ContinuationRefused)
    assert "again" in error.message
    assert not server.counts.chats


@pytest.mark.parametrize(
    "fault",
    [{"prefix": "refuse"}, {"anew_after": 15}, {"status": 500, "body": {"error": "Jinja Exception: roles must alternate"}}],
    ids=json.dumps,
)
async def test_a_model_that_does_not_go_on_says_nothing_twice_and_is_refused(
    server: OpenAIServer, engine: Engine, fault: dict[str, Any]
) -> None:
    whole = await reply_of(engine, HELLO)
    server.faults.change(fault)
    heard, error = await failing(engine, said=whole[:-1])
    assert heard == ""
    assert isinstance(error, ContinuationRefused)
    assert "again" in error.message
    await until(lambda: server.counts.live == 0, timeout=1.0)


async def test_a_new_answer_in_other_words_is_not_found_out_which_is_why_the_configuration_says(
    server: OpenAIServer, engine: Engine
) -> None:
    whole = await reply_of(engine, HELLO)
    server.faults.anew_after = 0
    assert await reply_of(engine, HELLO, said=whole[:40])


async def test_an_answer_that_breaks_off_in_the_middle_of_its_echo_is_no_continuation(
    server: OpenAIServer, engine: Engine
) -> None:
    whole = await reply_of(engine, HELLO)
    server.faults.prefix = "restart"
    said, few = whole[:-20], Options(max_tokens=len(whole[:-20].split()) + 10)
    with pytest.raises(ContinuationRefused, match="anew"):
        await reply_of(engine, HELLO, few, said=said)


async def test_a_model_that_thinks_refuses_a_prefix_and_one_that_thinks_anyway_is_refused(
    server: OpenAIServer, engine: Engine
) -> None:
    heard, error = await failing(engine, said="Something was said", model="qwen3")
    assert (heard, type(error)) == ("", ContinuationRefused)
    assert "enable_thinking" in error.message
    async with OpenAIServer(thinking=["qwen3"], continues="vllm") as vllm, started(vllm, model="qwen3") as engine:
        heard, error = await failing(engine, said="Something was said")
    assert (heard, type(error)) == ("", ContinuationRefused)
    assert "think anew" in error.message


async def test_max_tokens_holds_over_a_takeover(server: OpenAIServer, engine: Engine) -> None:
    options = Options(max_tokens=8)
    whole = await reply_of(engine, HELLO, options)
    begun = "".join(ollama_replies.tokens_of(whole)[:5])
    assert (begun + await reply_of(engine, HELLO, options, said=begun)).startswith(whole)
    assert server.counts.chats[-1]["max_tokens"] == 8 - least_tokens(begun), "at least; a continued reply may be a little longer"
    asked = len(server.counts.chats)
    rest = await pieces_of(engine, HELLO, Options(max_tokens=least_tokens(whole)), said=whole)
    assert [piece.text for piece in rest] == [""], "all of it was said"
    assert rest[0].usage is not None
    assert rest[0].usage.completion_tokens == least_tokens(whole)
    assert len(server.counts.chats) == asked


async def test_the_usage_of_a_continued_reply_counts_all_of_it(server: OpenAIServer, engine: Engine) -> None:
    whole = await pieces_of(engine, HELLO)
    begun = " ".join("".join(piece.text for piece in whole).split(" ")[:4])
    rest = await pieces_of(engine, HELLO, said=begun)
    assert whole[-1].usage is not None
    assert rest[-1].usage is not None
    assert abs(rest[-1].usage.completion_tokens - whole[-1].usage.completion_tokens) <= 2
    assert abs(rest[-1].usage.prompt_tokens - whole[-1].usage.prompt_tokens) <= 2


# Failures

FAILURES: dict[str, tuple[dict[str, object], type[EngineError], str]] = {
    "an error in the middle": ({"error_after": 4}, EngineUnavailable, "illegal memory access"),
    "an error as a string": ({"error_after": 4, "error_form": "string"}, EngineUnavailable, "illegal memory access"),
    "an error of an old llama.cpp": ({"error_after": 4, "error_form": "error"}, EngineUnavailable, "illegal memory access"),
    "a window that is full": ({"error_after": 4, "error": "context size exceeded"}, ContinuationRefused, "too long"),
    "an abrupt close": ({"close_after": 4}, EngineUnavailable, "broke off"),
    "an end without a reason": ({"end_after": 4}, EngineUnavailable, "before its end"),
    "an end in the middle of a line": ({"split_line_after": 4}, EngineUnavailable, "before its end"),
    "a hang": ({"hang_after": 4}, EngineTimeout, "hangs"),
}


@pytest.mark.parametrize(("faults", "kind", "told"), FAILURES.values(), ids=FAILURES)
async def test_what_breaks_a_reply_is_an_error_and_what_was_said_stands(
    server: OpenAIServer, engine: Engine, faults: dict[str, object], kind: type[EngineError], told: str
) -> None:
    whole = await reply_of(engine, HELLO)
    server.faults.change(faults)
    heard, error = await failing(engine)
    assert type(error) is kind
    assert told in error.message
    assert heard == "".join(ollama_replies.tokens_of(whole)[:4])
    server.faults = type(server.faults)()
    assert heard + await reply_of(engine, HELLO, said=heard) == whole, "another attempt goes on from there"


async def test_a_reply_that_its_server_gave_up_is_not_whole(server: OpenAIServer, engine: Engine) -> None:
    server.faults.finish = "abort"
    heard, error = await failing(engine)
    assert heard == answer(server)
    assert type(error) is EngineUnavailable


async def test_after_the_reason_of_the_end_a_reply_is_whole_whatever_the_connection_does(
    server: OpenAIServer, engine: Engine
) -> None:
    server.faults.hang_after_end = True
    pieces = await pieces_of(engine, HELLO)
    assert "".join(piece.text for piece in pieces) == answer(server)
    assert pieces[-1].usage is not None


LONG = {"error": {"code": 400, "message": "This model's maximum context length is 4096 tokens. However, you requested 5000"}}
REFUSALS: dict[str, tuple[dict[str, object], type[EngineError], str]] = {
    "503": ({"status": 503}, EngineUnavailable, "busy"),
    "429": ({"status": 429}, EngineUnavailable, "busy"),
    "500": ({"status": 500}, EngineUnavailable, "the server says no"),
    "502, in HTML": ({"status": 502, "body": "<html>Bad gateway</html>"}, EngineUnavailable, "Bad gateway"),
    "400": ({"status": 400}, EngineRejected, "does not take"),
    "a message too long": ({"status": 400, "body": LONG}, EngineRejected, "shorter"),
    "401": ({"status": 401}, EngineUnavailable, "api_key_file"),
    "403": ({"status": 403}, EngineUnavailable, "api_key_file"),
    "404": ({"status": 404}, EngineUnavailable, f"no model {MODEL}"),
    "an error with status 200": (
        {"status": 200, "body": {"error": {"message": "no GPU", "code": 500}}},
        EngineUnavailable,
        "no GPU",
    ),
    "no stream": ({"status": 200, "body": {"choices": []}}, EngineUnavailable, "does not stream"),
    "something else": ({"status": 200, "body": [1]}, EngineUnavailable, "does not speak"),
    "a hang at once": ({"hang": True}, EngineTimeout, "hangs"),
}


@pytest.mark.parametrize(("faults", "kind", "told"), REFUSALS.values(), ids=REFUSALS)
async def test_a_server_that_does_not_answer_is_an_error_that_says_why(
    server: OpenAIServer, engine: Engine, faults: dict[str, object], kind: type[EngineError], told: str
) -> None:
    server.faults.change(faults)
    heard, error = await failing(engine)
    assert type(error) is kind
    assert told in error.message
    assert (heard, engine.status.busy) == ("", 0)


async def test_what_was_said_and_a_message_that_are_too_long_for_the_server_are_for_another_pool(
    server: OpenAIServer, engine: Engine
) -> None:
    server.faults.change({"status": 400, "body": LONG})
    _, error = await failing(engine, said="Something was said")
    assert type(error) is ContinuationRefused


async def test_a_server_that_dies_during_a_reply_and_one_that_is_gone(server: OpenAIServer, engine: Engine) -> None:
    server.faults.hang_after = 2
    pieces = engine.generate(HELLO, NOTHING, Prefix(), run="r1")
    assert (await anext(pieces)).text
    await server.kill()
    with pytest.raises(EngineUnavailable, match=r"broke off|ended its answer"):
        async for _ in pieces:
            pass
    _, error = await failing(engine)
    assert isinstance(error, EngineUnavailable)
    assert "base_url" in error.message


# Starting, checking, and the key


@pytest.mark.parametrize(
    ("faults", "told"),
    [({"hang": True}, "hangs"), ({"status": 503}, "busy"), ({"status": 404}, "/v1"), ({"status": 401}, "key")],
    ids=["hang", "503", "404", "401"],
)
async def test_start_and_check_say_what_is_wrong_and_are_well_again_when_it_is_right(
    server: OpenAIServer, faults: dict[str, object], told: str
) -> None:
    engine = engine_of(server)
    server.faults.change(faults)
    with pytest.raises(EngineUnavailable, match=told):
        await asyncio.wait_for(engine.start(), 3)
    assert told in engine.status.note
    server.faults = type(server.faults)()
    await engine.start()
    assert (engine.status.models, engine.status.note) == ((MODEL,), "")
    server.faults.change(faults)
    with pytest.raises(EngineUnavailable, match=told):
        await asyncio.wait_for(engine.check(), 3)
    assert engine.status.models == ()
    server.faults = type(server.faults)()
    await engine.check()
    assert (engine.status.models, engine.status.note) == ((MODEL,), "")
    await engine.close()


async def test_a_model_that_the_server_does_not_have_is_named_with_those_it_has(server: OpenAIServer) -> None:
    engine = engine_of(server, model="mistral")
    with pytest.raises(EngineUnavailable, match=rf"no model mistral, but gemma-3, {MODEL}, qwen3.*--alias"):
        await engine.start()
    await engine.close()


async def test_the_key_comes_from_a_file_and_is_nowhere_to_be_read(tmp_path: Path) -> None:
    file, secret = tmp_path / "key", "sk-very-secret"
    async with OpenAIServer(MODEL, key=secret) as server:
        engine = engine_of(server, api_key_file=str(file))
        for content, told in (
            (None, "cannot be read"),
            ("two words", "holds no key"),
            ("", "holds no key"),
            ("wrong", "refuses the key"),
        ):
            if content is not None:
                file.write_text(content)
            with pytest.raises(EngineUnavailable, match=told) as caught:
                await engine.start()
            assert str(file) in caught.value.message or "api_key_file" in caught.value.message
        file.write_text(f"{secret}\n")
        await engine.start()
        assert await reply_of(engine, HELLO) == answer(server)
        assert secret not in repr(vars(engine)) + repr(engine.status)
        await engine.close()


async def test_a_proxy_of_the_environment_is_not_asked(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with started(server) as engine:
        assert await reply_of(engine, HELLO)


async def test_an_engine_that_is_not_started_or_closed_says_so(server: OpenAIServer) -> None:
    engine = engine_of(server)
    for _ in range(2):
        _, error = await failing(engine)
        assert isinstance(error, EngineUnavailable)
        assert "Start it" in error.message
        with pytest.raises(EngineUnavailable):
            await engine.check()
        await engine.start()
        await engine.close()
