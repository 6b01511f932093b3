"""History is cut to the context window: oldest whole turns first, never the system prompt, never the last message."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.chat.engine import Prompt, PromptMessage
from serve_app.chat.errors import EngineRejected
from serve_app.chat.messages import Role
from serve_app.chat.prompt import fit
from tests.support.stack import personalities

SYSTEM = 10


def words(prompt: Prompt) -> int:
    return SYSTEM + sum(len(message.content.split()) for message in prompt.messages)


def conversation(*lengths: int) -> Prompt:
    """Turns of a question and an answer of so many words each; the last one has no answer yet."""
    messages = []
    for number, length in enumerate(lengths):
        messages.append(PromptMessage(Role.USER, f"q{number} " * length))
        messages.append(PromptMessage(Role.ASSISTANT, f"a{number} " * length))
    return Prompt(personalities().get("robbie"), tuple(messages[:-1]), "a-model")


def test_what_fits_is_left_as_it_is() -> None:
    prompt = conversation(3, 3, 3)
    assert fit(prompt, room=words(prompt), count=words) == prompt


def test_the_oldest_turns_go_whole_and_no_more_of_them_than_needed() -> None:
    prompt = conversation(3, 3, 3)
    cut = fit(prompt, room=words(prompt) - 1, count=words)
    assert [message.content[:2] for message in cut.messages] == ["q1", "a1", "q2"]
    assert (cut.personality, cut.model) == (prompt.personality, prompt.model)


def test_a_stopped_turn_without_a_reply_is_a_turn_too() -> None:
    prompt = conversation(2, 2, 2)
    without = Prompt(prompt.personality, prompt.messages[:1] + prompt.messages[2:])
    cut = fit(without, room=words(without) - 1, count=words)
    assert [message.content[:2] for message in cut.messages] == ["q1", "a1", "q2"]


def test_a_message_that_is_too_long_by_itself_is_refused_with_what_to_do() -> None:
    with pytest.raises(EngineRejected, match="Send a shorter message"):
        fit(conversation(1, 50), room=40, count=words)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 300))
def test_the_longest_ending_that_fits_is_kept(lengths: list[int], room: int) -> None:
    prompt = conversation(*lengths)
    endings = [prompt.messages[2 * turn :] for turn in range(len(lengths))]
    fitting = [ending for ending in endings if words(Prompt(prompt.personality, ending)) <= room]
    if fitting:
        assert fit(prompt, room=room, count=words).messages == fitting[0]
    else:
        with pytest.raises(EngineRejected):
            fit(prompt, room=room, count=words)
