"""The scripted engine: what it says, how fast, and how it fails when asked to."""

import asyncio
import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serve_app.chat.engine import Prefix, Prompt, PromptMessage
from serve_app.chat.errors import ContinuationRefused, EngineError, EngineRejected
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personality, Script
from serve_app.engines import EngineConfig, ScriptedConfig, ScriptedEngine, make_engine
from serve_app.engines.script_writer import find_name, reflect, write_reply

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "personalities").glob("*.yaml"))
WHO = {file.stem: Personality(**yaml.safe_load(file.read_text(encoding="utf-8"))) for file in FILES}
ROBBIE = WHO["robbie"]
RUN = "a1b2c3d4e5"
MESSAGES = st.text(max_size=200) | st.sampled_from(
    ["Hello!", "What are you?", "I lost my 🔑s, naïvely.", "Why is 漢字 so?", "bye"]
)


def asked(*texts: str, who: Personality = ROBBIE) -> Prompt:
    """A conversation: user, assistant, user, ..."""
    roles = (Role.USER, Role.ASSISTANT)
    return Prompt(who, tuple(PromptMessage(roles[n % 2], text) for n, text in enumerate(texts)))


def reply(*texts: str, who: Personality = ROBBIE) -> str:
    return " ".join(write_reply(asked(*texts, who=who), Options()))


async def say(
    prompt: Prompt, options: Options | None = None, said: str = "", run: str = RUN, *, drills: bool = False
) -> list[str]:
    engine = ScriptedEngine(ScriptedConfig(drills=drills))
    return [piece.text async for piece in engine.generate(prompt, options or Options(), Prefix(said), run=run)]


def say_now(prompt: Prompt, options: Options, said: str = "", run: str = RUN) -> str:
    return "".join(asyncio.run(say(prompt, options, said, run)))


@pytest.fixture(params=list(WHO.values()), ids=list(WHO))
def who(request: pytest.FixtureRequest) -> Personality:
    member: Personality = request.param
    return member


def test_the_three_of_the_mission_are_there_and_each_has_lines_enough(who: Personality) -> None:
    assert set(WHO) >= {"robbie", "allanbot", "kristina"}
    script = who.script
    assert len(script.greetings) >= 4
    assert len(script.reflections) >= 8
    assert len(script.asides) >= 12
    assert len(script.questions) >= 6
    assert min(len(getattr(script, field)) for field in Script.model_fields) >= 4
    assert len({line for field in Script.model_fields for line in getattr(script, field)}) == sum(
        len(getattr(script, field)) for field in Script.model_fields
    )


def test_placeholders_stand_where_they_are_filled(who: Personality) -> None:
    script = who.script
    assert all("{topic}" in line for line in script.reflections)
    assert all("{name}" in line for line in script.name_learned + script.name_known)
    assert any("{name}" in line for line in script.greetings)
    assert any("{name}" not in line for line in script.greetings)
    assert not any("{" in line for line in script.asides + script.questions + script.admissions + script.name_unknown)


def test_it_admits_plainly_that_it_is_scripted_knows_no_facts_and_what_to_do(who: Personality) -> None:
    for line in who.script.admissions:
        assert all(word in line for word in ("scripted engine", "facts", "model", "pool"))
    for line in who.script.what_am_i:
        assert "script" in line
        assert "language model" in line


@pytest.mark.parametrize(
    "text",
    [
        "Hello!",
        "My name is Ada",
        "Why is the sea salt?",
        "I lost my keys",
        "Who are you?",
        "What's my name?",
        "bye",
        "👋",
        "ok",
        "Hi! Could you write me a rather long poem about the sea, with at least seven stanzas, and rhymes?",
    ],
)
def test_an_ordinary_reply_is_worth_streaming(who: Personality, text: str) -> None:
    assert 40 <= len(reply(text, who=who).split()) <= 90


def opens_with(text: str, lines: tuple[str, ...], name: str = "") -> bool:
    return any(text.startswith(" ".join(line.replace("{name}", name).split("{topic}")[0].split())) for line in lines)


def test_it_greets_whoever_says_hello(who: Personality) -> None:
    assert opens_with(reply(f"Hello {who.display_name}!", who=who), who.script.greetings)


def test_it_says_goodbye(who: Personality) -> None:
    for text in ("bye", "Thanks, goodbye!", "See you tomorrow"):
        assert opens_with(reply(text, who=who), who.script.farewells)


def test_it_says_that_it_is_a_script_and_not_a_language_model(who: Personality) -> None:
    for text in ("What are you?", "are you a real person?", "Are you an AI", "Who are you, Robbie?", "Hi, are you a model?"):
        assert "language model" in reply(text, who=who)


def test_asked_for_a_fact_it_gives_the_words_back_and_admits_that_it_knows_none(who: Personality) -> None:
    text = reply("What is the capital of France?", who=who)
    assert "what is the capital of France" in text
    assert "scripted engine" in text


def test_it_reflects_what_was_said_with_the_pronouns_swapped(who: Personality) -> None:
    assert "you lost your keys" in reply("I lost my keys.", who=who)


@pytest.mark.parametrize(
    ("heard", "turned"),
    [
        ("I lost my keys.", "you lost your keys"),
        ("Are you sad about my dog?", "am I sad about your dog"),
        ("I’m afraid I am late", "you're afraid you are late"),
        ("Why can't you help me?", "why can't I help you"),
        ("I think you are wrong", "you think I am wrong"),
        ("It rains. My boat leaks! So what?", "your boat leaks"),
        ("Paris is lovely", "Paris is lovely"),
        ("Thank you, dear", "thank you, dear"),
        ("a b c d e f g h one two three four five", "a b c d e f g h one two three four…"),
        ("!?…", ""),
    ],
)  # fmt: skip
def test_reflecting(heard: str, turned: str) -> None:
    assert reflect(heard.replace("’", "'")) == turned


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my name is ada", "Ada"),
        ("My name's Ada Lovelace, and yours?", "Ada Lovelace"),
        ("Hi, I'm Bob!", "Bob"),
        ("I’m Jean-Luc and I like tea", "Jean-Luc"),
        ("I am Zoë", "Zoë"),
        ("you can call me ishmael", "Ishmael"),
        ("My name is Bob. No: call me Rob", "Rob"),
        ("I'm tired", ""),
        ("I'm Tired", ""),
        ("I'M ANGRY", ""),
        ("I'm German", ""),
        ("I'm Bob's brother", ""),
        ("call me later", ""),
        ("my name is not important", ""),
        ("what is my name?", ""),
    ],
)
def test_a_name_is_heard_where_one_is_given_and_nowhere_else(text: str, name: str) -> None:
    assert find_name(text) == name


def test_it_remembers_a_name_told_anywhere_in_the_history(who: Personality) -> None:
    history = ("My name is Ada", "Hm.", "It rains", "It does.", "I'm tired", "Then rest.")
    assert opens_with(reply("My name is Ada", who=who), who.script.name_learned, "Ada")
    assert "Ada" in reply(*history, "What's my name?", who=who)
    assert "Ada" in reply(*history, "Hello again", who=who)
    assert "Ada" in reply(*history, "bye", who=who)
    assert "Bob" in reply(*history, "call me Bob", "Yes.", "do you remember my name?", who=who)


def test_without_a_name_it_says_so(who: Personality) -> None:
    assert opens_with(reply("What is my name?", who=who), who.script.name_unknown)


def test_the_users_own_braces_are_words_and_not_places_to_fill() -> None:
    assert "{name} {topic} {0} here" in reply("my friend: {name} {topic} {0} here")


def test_the_reply_varies_with_the_history_and_does_not_repeat_itself_at_once(who: Personality) -> None:
    history: tuple[str, ...] = ("Hello!",)
    replies = []
    for _ in range(6):
        replies.append(reply(*history, who=who))
        history += (replies[-1], "Hello!")
    assert len(set(replies)) == 6
    first = [text.split(". ")[0].split("! ")[0] for text in replies]
    assert all(one != next_one for one, next_one in itertools.pairwise(first))


def test_another_process_says_the_same_to_the_letter() -> None:
    code = "from tests.unit.test_scripted import reply; print(ascii(reply('Why is the sea salt?', 'Is it?', 'I ask you')))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=ROOT, env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
    assert out.stdout.decode().strip() == ascii(reply("Why is the sea salt?", "Is it?", "I ask you"))


@given(words=st.integers(1, 700), text=MESSAGES)
@settings(max_examples=60, deadline=None)
def test_exactly_as_many_words_as_asked_for(words: int, text: str) -> None:
    assert len(say_now(asked(text), Options(words=words)).split()) == words


async def test_twenty_thousand_words_are_twenty_thousand_words_and_do_not_drone() -> None:
    text = "".join(await say(asked("Go on"), Options(words=20_000)))
    words = text.split()
    assert len(words) == 20_000
    thousands = [tuple(words[n : n + 1_000]) for n in range(0, 20_000, 1_000)]
    assert len(set(thousands)) == 20


async def test_a_longer_reply_begins_like_the_ordinary_one_and_max_tokens_cuts_it() -> None:
    ordinary = reply("Why is the sea salt?")
    assert "".join(await say(asked("Why is the sea salt?"), Options(words=300))).startswith(ordinary + " ")
    for most in (1, 2, 17, 30, 500):
        cut = "".join(await say(asked("Why is the sea salt?"), Options(max_tokens=most)))
        assert cut == " ".join(ordinary.split()[:most])
    assert len("".join(await say(asked("Hi"), Options(words=300, max_tokens=120))).split()) == 120


async def test_sampling_options_change_nothing() -> None:
    assert await say(asked("Hi")) == await say(asked("Hi"), Options(seed=3, temperature=1.5, top_p=0.2))


async def test_each_piece_is_a_word_with_its_space_and_the_usage_counts_words() -> None:
    prompt, options = asked("one two", "three", "four five six"), Options(words=25)
    engine = ScriptedEngine(ScriptedConfig())
    pieces = [piece async for piece in engine.generate(prompt, options, Prefix(), run=RUN)]
    texts = [piece.text for piece in pieces]
    assert len(texts) == 25
    assert all(text == text.strip() + " " for text in texts[:-1])
    assert texts[-1] == texts[-1].strip()
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 25
    assert usage.prompt_tokens == len(ROBBIE.system.split()) + 6
    rest = [piece async for piece in engine.generate(prompt, options, Prefix("".join(texts[:9])), run=RUN)]
    assert rest[-1].usage == usage


@given(data=st.data(), text=MESSAGES, words=st.none() | st.integers(1, 120))
@settings(max_examples=100, deadline=None)
def test_cut_anywhere_the_continuation_is_the_rest(data: st.DataObject, text: str, words: int | None) -> None:
    options = Options(words=words)
    whole = say_now(asked(text), options)
    cut = data.draw(st.integers(0, len(whole)))
    assert whole[:cut] + say_now(asked(text), options, whole[:cut], run="other") == whole


@pytest.mark.parametrize("said", ["Nonsense", " ", "\ud800"])
async def test_what_is_no_beginning_of_the_reply_is_not_gone_on_from(said: str) -> None:
    with pytest.raises(ContinuationRefused, match="no beginning"):
        await say(asked("Hi"), said=said)
    with pytest.raises(ContinuationRefused, match="no beginning"):
        await say(asked("Hi"), said=reply("Hi") + " ")


async def test_an_empty_script_is_an_engine_error() -> None:
    who = ROBBIE.model_copy(update={"script": Script(**{field: (" ",) * 4 for field in Script.model_fields})})
    for options in (Options(), Options(words=5)):
        with pytest.raises(EngineRejected, match="no words"):
            await say(asked("Hi", who=who), options)


@given(cuts=st.lists(st.integers(0, 40), max_size=4), words=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_divergent_reply_is_contiguous_stretches_one_per_attempt(cuts: list[int], words: int) -> None:
    prompt, options = asked("Tell me of the sea"), Options(words=words, divergent=True)
    plain = write_reply(prompt, Options(words=words))
    said, expected = "", 0
    marks: list[str] = []
    for attempt, pieces in enumerate([*cuts, words]):
        texts = asyncio.run(say(prompt, options, said, run=f"{attempt}runrunrun"))[:pieces]
        said += "".join(texts)
        new = sum(bool(text) for text in texts)
        marks += [f"{attempt}runru"] * new
        expected += new
    assert expected == words
    assert said.split() == [f"{word}~{mark}" for word, mark in zip(plain, marks, strict=True)]
    assert said == " ".join(said.split())


async def test_a_divergent_reply_cut_inside_a_word_goes_on_with_the_next_one() -> None:
    prompt, options = asked("Tell me of the sea"), Options(words=12, divergent=True)
    whole = "".join(await say(prompt, options))
    for cut in range(1, len(whole)):
        rest = "".join(await say(prompt, options, whole[:cut], run="zzzzzzzz"))
        joined = (whole[:cut] + rest).split()
        begun = len(whole[:cut].split())
        assert len(joined) == 12
        assert all(word.endswith("~zzzzzz") for word in joined[begun:])
        assert joined[:begun] == whole[:cut].split()


async def test_a_divergent_reply_does_not_continue_another_text() -> None:
    for said in ("Nonsense~a1b2c3 ", reply("Hi")):
        with pytest.raises(ContinuationRefused, match="marks"):
            await say(asked("Hi"), Options(divergent=True), said=said)


class Clock:
    """Time that passes only in sleep; each sleep oversleeps, as real ones do."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now, self.sleeps, self.oversleep = 1_000.0, 0, oversleep

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.oversleep
        self.sleeps += 1


async def times_of(speed: float | None, options: Options, clock: Clock) -> list[float]:
    engine = ScriptedEngine(ScriptedConfig(words_per_second=speed), clock=clock, sleep=clock.sleep)
    return [clock.now - 1_000.0 async for _ in engine.generate(asked("Hi"), options, Prefix(), run=RUN)]


async def test_words_come_at_their_due_times_and_a_late_sleep_does_not_add_up() -> None:
    times = await times_of(20, Options(words=200), Clock(oversleep=0.004))
    assert times[0] == 0
    assert all(n / 20 - 1e-6 <= at <= n / 20 + 0.0041 for n, at in enumerate(times))


async def test_the_speed_of_the_request_goes_before_that_of_the_configuration() -> None:
    times = await times_of(1, Options(words=11, words_per_second=100), Clock())
    assert times[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("speed", [201, 1_000, 50_000])
async def test_at_high_speeds_sleeps_are_grouped_and_the_rate_is_right(speed: int) -> None:
    clock = Clock(oversleep=0.001)
    times = await times_of(None, Options(words=5_000, words_per_second=speed), clock)
    assert all(n / speed - 0.0051 <= at <= n / speed + 0.0021 for n, at in enumerate(times))
    assert clock.sleeps <= 5_000 / speed / 0.005 + 1


async def test_without_a_pace_it_never_suspends() -> None:
    engine = ScriptedEngine(ScriptedConfig())
    pieces = engine.generate(asked("Hi"), Options(words=20), Prefix(), run=RUN)
    for _ in range(20):
        # A coroutine that suspends would give a future here instead of ending at once.
        with pytest.raises(StopIteration):
            pieces.__anext__().send(None)


@pytest.mark.parametrize("word", ["drill-raise", "drill-hang", "drill-silent", "poison-kill"])
async def test_without_drills_the_drill_words_are_words(word: str) -> None:
    assert word in "".join(await say(asked(f"I said {word}")))


@pytest.mark.parametrize("text", ["undrill-raise", "drill-raised", "drill-raise-x"])
async def test_only_the_exact_word_is_a_drill(text: str) -> None:
    assert len(await say(asked(f"I said {text}"), drills=True)) > 3


async def test_only_the_last_message_of_the_user_asks_for_a_drill() -> None:
    assert len(await say(asked("drill-raise", "No.", "Then hello"), drills=True)) > 3


@pytest.mark.parametrize(("before", "new"), [(0, 3), (1, 2), (3, 0), (9, 0)])
async def test_the_raise_drill_raises_after_the_third_word_of_the_whole_reply(before: int, new: int) -> None:
    words = reply("Now drill-raise").split()
    pieces = ScriptedEngine(ScriptedConfig(drills=True)).generate(
        asked("Now drill-raise"), Options(), Prefix(" ".join(words[:before])), run=RUN
    )
    assert [(await anext(pieces)).text.strip() for _ in range(new)] == words[before : before + new]
    with pytest.raises(EngineError, match="drill-raise"):
        await anext(pieces)


async def test_the_hang_drill_hangs_after_three_words_and_can_be_cancelled() -> None:
    pieces = ScriptedEngine(ScriptedConfig(drills=True)).generate(asked("drill-hang"), Options(), Prefix(), run=RUN)
    for _ in range(3):
        await anext(pieces)
    more = asyncio.ensure_future(anext(pieces))
    done, _ = await asyncio.wait({more}, timeout=0.05)
    assert not done
    more.cancel()
    with pytest.raises(asyncio.CancelledError):
        await more
    await pieces.aclose()


async def test_the_silent_drill_says_nothing() -> None:
    assert await say(asked("drill-silent"), drills=True) == []


@pytest.mark.parametrize(("before", "seen"), [(0, 3), (2, 1), (3, 0), (7, 0)])
def test_the_kill_drill_kills_its_process_after_the_third_word(before: int, seen: int) -> None:
    code = f"""
import asyncio
from tests.unit.test_scripted import *
async def main():
    engine = ScriptedEngine(ScriptedConfig(drills=True))
    said = " ".join(reply("poison-kill").split()[:{before}])
    async for piece in engine.generate(asked("poison-kill"), Options(), Prefix(said), run=RUN):
        print("word", flush=True)
asyncio.run(main())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL
    assert run.stdout.split() == [b"word"] * seen


def test_the_engine_is_chosen_by_kind_and_mistakes_in_its_configuration_are_refused() -> None:
    read: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
    engine = make_engine(read.validate_python({"kind": "scripted", "words_per_second": 20}))
    assert engine.info.kind == "scripted"
    assert not engine.info.language_model
    for wrong in ({"kind": "oracle"}, {"kind": "scripted", "speed": 1}, {"kind": "scripted", "words_per_second": 0}):
        with pytest.raises(ValidationError):
            read.validate_python(wrong)
    assert all(field.description for field in ScriptedConfig.model_fields.values())
