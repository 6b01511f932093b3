"""What requests may ask of an engine, and the bounds of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.chat.errors import OptionRefused
from serve_app.chat.options import OptionLimits, Options, PersonalityOptions

ANY_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1, exclude_min=True),
        "max_tokens": st.integers(1, 32_768),
        "seed": st.integers(0, 2**53 - 1),
        "words": st.integers(1, 20_000),
        "words_per_second": st.floats(0, 100_000, exclude_min=True),
        "divergent": st.booleans(),
    },
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.01), ("temperature", 2.01), ("temperature", float("nan")), ("temperature", float("inf")), ("top_p", 0),
        ("top_p", 1.01), ("top_p", float("nan")), ("max_tokens", 0), ("max_tokens", 32_769), ("max_tokens", 1.5), ("seed", -1),
        ("seed", 2**53), ("words", 0), ("words", 20_001), ("words_per_second", 0), ("words_per_second", float("nan")),
        ("words_per_second", 100_001), ("words_per_second", float("inf")), ("divergent", "perhaps"), ("tempreature", 1),
        ("context_window", 4_096),
    ],
)  # fmt: skip
def test_a_value_out_of_its_bounds_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0), ("temperature", 2), ("top_p", 1), ("max_tokens", 1), ("max_tokens", 32_768), ("seed", 0),
        ("seed", 2**53 - 1), ("words", 20_000), ("words_per_second", 100_000), ("divergent", True),
    ],
)  # fmt: skip
def test_the_bounds_themselves_are_allowed(name: str, value: object) -> None:
    assert Options.model_validate({name: value}).asked() == {name: value}


@pytest.mark.parametrize("asked", [{"words": 3}, {"words_per_second": 5.0}, {"divergent": False}])
def test_drill_options_are_refused_unless_the_configuration_allows_them(asked: dict[str, object]) -> None:
    options = Options.model_validate(asked)
    with pytest.raises(OptionRefused, match=next(iter(asked))):
        OptionLimits.model_validate({}).check(options)
    assert OptionLimits(drill_options=True).check(options) is options


def test_the_limits_of_a_configuration_are_inclusive_and_named_in_the_refusal() -> None:
    limits = OptionLimits(drill_options=True, max_tokens=100, max_words=50)
    limits.check(Options(max_tokens=100, words=50))
    with pytest.raises(OptionRefused, match="max_tokens may be at most 100"):
        limits.check(Options(max_tokens=101))
    with pytest.raises(OptionRefused, match="words may be at most 50"):
        limits.check(Options(words=51))


def test_what_is_asked_for_wins_over_the_personalitys_defaults_and_the_rest_comes_from_them() -> None:
    merged = Options(temperature=0).over(Options(temperature=0.7, max_tokens=100))
    assert merged.asked() == {"temperature": 0, "max_tokens": 100}


def test_who_asks_for_words_is_not_cut_at_the_personalitys_tokens_but_at_their_own() -> None:
    assert Options(words=2_000).over(Options(max_tokens=100)).max_tokens is None
    assert Options(words=2_000, max_tokens=7).over(Options(max_tokens=100)).max_tokens == 7


@pytest.mark.parametrize("window", [-1, 0, 1_023, 2_097_153, 4_096.5, "large"])
def test_a_personality_asks_for_no_window_that_makes_no_sense(window: object) -> None:
    with pytest.raises(ValidationError, match="context_window"):
        PersonalityOptions.model_validate({"context_window": window})


@pytest.mark.parametrize("window", [1_024, 2_097_152])
def test_a_personality_has_options_that_no_request_has_and_they_do_not_get_into_one(window: int) -> None:
    defaults = PersonalityOptions(temperature=0.7, context_window=window)
    assert defaults.context_window == window
    merged = Options(seed=1).over(defaults)
    assert type(merged) is Options
    assert merged.asked() == {"temperature": 0.7, "seed": 1}


@given(asked=ANY_OPTIONS, defaults=ANY_OPTIONS)
def test_options_survive_being_stored_and_nothing_that_was_asked_for_is_lost(
    asked: dict[str, object], defaults: dict[str, object]
) -> None:
    options = Options.model_validate(asked)
    assert Options.model_validate(options.asked()) == options
    merged = options.over(Options.model_validate(defaults))
    assert options.asked().items() <= merged.asked().items()
    assert set(merged.asked()) <= set(asked) | set(defaults)
    assert merged.over(Options()) == merged
