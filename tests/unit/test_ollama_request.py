"""What Ollama is asked for: tokens are estimated rather too high, a request fits its window, and a seam repeats nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serve_app.chat.engine import Prefix
from serve_app.chat.errors import ContinuationRefused, EngineRejected
from serve_app.chat.options import Options
from serve_app.engines import EngineConfig, OllamaConfig, OllamaEngine, make_engine
from serve_app.engines.ollama_continuation import Ending, Seam
from serve_app.engines.ollama_request import Request, build_request, full_name
from serve_app.engines.token_estimate import TokenEstimate, least_tokens
from tests.support.ollama_engines import prompt_of

READ: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
SAID = "It was a dark and stormy night, and the rain fell in torrents."


def asked(*messages: str, said: str = "", window: int = 1_000, wanted: int | None = None, **options: float) -> Request | None:
    prompt = prompt_of(*messages, system="Be short.", context_window=wanted)
    estimate = TokenEstimate()
    return build_request(prompt, Options.model_validate(options), Prefix(said), window=window, num_predict=300, estimate=estimate)


def through(said: str, ending: Ending, *texts: str) -> list[str]:
    """Return what comes through a seam, each time and at the end."""
    seam = Seam(said, ending)
    return [*map(seam.feed, texts), seam.end()]


def test_a_configuration_is_told_by_its_kind_and_its_engine_goes_to_the_nodes_server_unless_it_names_one() -> None:
    config = READ.validate_python({"kind": "ollama", "model": "hf.co/someone/Some-Model_1.5-GGUF:Q4_K_M", "models": ["phi4"]})
    assert isinstance(config, OllamaConfig)
    engine = make_engine(config, ollama_url="http://10.0.0.1:11434")
    assert isinstance(engine, OllamaEngine)
    assert engine.info.model == config.model
    assert engine.info.language_model
    assert engine.status.models == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"model": ""},
        {"model": "two words"},
        {"model": "m", "models": ["no good"]},
        {"model": "m", "url": "10.0.0.1"},
        {"model": "m", "unknown": 1},
        {"model": "m", "think": "much"},
        {"model": "m", "slots": 0},
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python({"kind": "ollama", **wrong})


def test_a_models_full_name_has_its_tag() -> None:
    assert [full_name(name) for name in ("phi4", "phi4:14b", "host:5000/a/b", "host:5000/a/b:q4")] == [
        "phi4:latest", "phi4:14b", "host:5000/a/b:latest", "host:5000/a/b:q4",
    ]  # fmt: skip


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=200))
def test_there_are_never_more_tokens_at_least_than_bytes(text: str) -> None:
    assert least_tokens(text) <= len(text.encode())


def test_an_estimate_takes_three_letters_or_two_other_bytes_for_a_token() -> None:
    assert TokenEstimate().most("a" * 300) == 101
    assert TokenEstimate().most("漢" * 100) == 151
    assert TokenEstimate().most("") == 1
    assert least_tokens("") == 0
    assert least_tokens("one two  three\n") == 3
    assert least_tokens("漢" * 100) == 37


def test_an_estimate_follows_what_the_server_counts_up_at_once_and_down_when_it_is_sure() -> None:
    estimate, prompt = TokenEstimate(), prompt_of("1 2 3 " * 300)
    before = estimate.prompt(prompt)
    estimate.learn(prompt, "", before * 2)
    assert estimate.prompt(prompt) > 1.8 * before
    for _ in range(15):
        estimate.learn(prompt, "", before // 2)
    assert estimate.prompt(prompt) > 1.8 * before, "one of the last sixteen was that high"
    for _ in range(2):
        estimate.learn(prompt, "", int(before * 0.8))
    assert estimate.prompt(prompt) < before


def test_a_count_that_leaves_out_what_was_cached_or_is_missing_teaches_nothing() -> None:
    estimate, prompt = TokenEstimate(), prompt_of("Tell me a story. " * 50)
    before = estimate.prompt(prompt)
    for count in (None, 0, 1, before // 4):
        estimate.learn(prompt, "", count)
    assert estimate.prompt(prompt) == before


def test_an_option_that_nobody_set_is_not_sent_and_zero_is() -> None:
    request = asked("Hello!", temperature=0, seed=0)
    assert request is not None
    assert request.options == {"num_ctx": 1_000, "num_predict": 300, "temperature": 0, "seed": 0}


def test_prompt_reply_and_prefix_fit_into_the_window_together() -> None:
    turns = ["a question of some words " * 6, "an answer of some words " * 6] * 20
    for said in ("", SAID * 3):
        request = asked(*turns, "and now?", said=said)
        assert request is not None
        estimate = TokenEstimate()
        total = estimate.prompt(request.prompt) + (estimate.most(said) if said else 0) + int(request.options["num_predict"])
        assert total <= 1_000
        assert 3 < len(request.prompt.messages) < len(turns)


@pytest.mark.parametrize("said", ["", SAID * 3])
def test_a_personality_that_wants_less_gets_less_and_the_models_window_stays_so_that_it_is_not_loaded_anew(said: str) -> None:
    turns = ["a question of some words " * 6, "an answer of some words " * 6] * 40
    request, wide = asked(*turns, "and now?", said=said, window=4_000, wanted=1_024), asked(*turns, "and now?", window=4_000)
    assert request is not None
    assert wide is not None
    estimate = TokenEstimate()
    total = estimate.prompt(request.prompt) + (estimate.most(said) if said else 0) + int(request.options["num_predict"])
    assert total <= 1_024
    assert 3 < len(request.prompt.messages) < len(wide.prompt.messages)
    assert request.options["num_ctx"] == wide.options["num_ctx"] == 4_000


def test_a_personality_that_wants_more_than_there_is_gets_what_there_is() -> None:
    turns = ["a question of some words " * 6, "an answer of some words " * 6] * 20
    request, usual = asked(*turns, "and now?", wanted=100_000), asked(*turns, "and now?")
    assert request is not None
    assert usual is not None
    assert (request.messages, request.options) == (usual.messages, usual.options)


def test_a_message_beyond_the_window_that_its_personality_wants_is_refused() -> None:
    assert asked("word " * 500, window=8_000) is not None
    with pytest.raises(EngineRejected, match="shorter message"):
        asked("word " * 500, window=8_000, wanted=1_024)


def test_a_reply_longer_than_half_the_window_leaves_the_other_half_to_the_prompt() -> None:
    request = asked("Hello!", max_tokens=20_000)
    assert request is not None
    assert 500 <= request.options["num_predict"] < 1_000
    with pytest.raises(EngineRejected):
        asked("word " * 500, max_tokens=20_000)


def test_what_was_said_counts_towards_max_tokens_and_may_have_used_them_up() -> None:
    request = asked("Hello!", said="one two three ", max_tokens=10)
    assert request is not None
    assert request.options["num_predict"] == 7
    assert request.messages[-1] == {"role": "assistant", "content": "one two three "}
    assert asked("Hello!", said="one two three ", max_tokens=3) is None


def test_what_was_said_may_leave_no_room_and_then_another_engine_may_go_on() -> None:
    with pytest.raises(ContinuationRefused):
        asked("Hello!", said="word " * 700, max_tokens=5_000)


def test_a_seam_lets_through_what_follows() -> None:
    for ending in Ending:
        assert "".join(through(SAID, ending, " And", " then", " some.")) == " And then some."
    assert through("", Ending.OPEN, "<think>", "x") == ["<think>", "x", ""], "of a whole reply nothing is held back"
    assert through(SAID, Ending.OPEN, " And", " then") == [" And", " then", ""], "at once"


def test_a_seam_takes_off_the_whitespace_that_the_template_dropped() -> None:
    assert "".join(through("It was\n\n", Ending.TRIMMED, "\n", "\nnight")) == "night"
    assert "".join(through("It was ", Ending.TRIMMED, " a", " night")) == "a night"
    assert "".join(through("It was ", Ending.TRIMMED, "a", " night")) == "a night"
    assert "".join(through("It was ", Ending.OPEN, " a")) == " a", "where none was dropped, the model means it"


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_seam_refuses_what_was_said_once_more_before_any_of_it_is_shown(step: int) -> None:
    for answer, ending in ((SAID, Ending.UNKNOWN), ("\n\n" + SAID, Ending.UNKNOWN), ("<think>Hm", Ending.OPEN)):
        seam, shown = Seam(SAID, ending), ""
        with pytest.raises(ContinuationRefused):
            shown = "".join(seam.feed(answer[at : at + step]) for at in range(0, len(answer), step))
        assert shown == ""


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=60), st.text(min_size=1, max_size=60), st.integers(1, 9), st.sampled_from(list(Ending)))
def test_a_seam_loses_and_adds_nothing(said: str, rest: str, step: int, ending: Ending) -> None:
    seam = Seam(said, ending)
    try:
        heard = "".join(seam.feed(rest[at : at + step]) for at in range(0, len(rest), step)) + seam.end()
    except ContinuationRefused:
        return
    assert rest.endswith(heard)
    assert heard == rest or (ending is Ending.TRIMMED and not rest.removesuffix(heard).strip())
