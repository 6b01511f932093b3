"""The engine `scripted`: answers in character without a model, without weights, without a network; and says so.

It is the default of the embedded configuration, and the tool of the drills, because the right reply is known to the letter.
Three promises make it so:

*Repeatable.* The reply depends on the personality, the history, `words` and `max_tokens`, and on nothing else: not on the run,
the process, the node or the time. `temperature`, `top_p` and `seed` are accepted and change nothing. One word is one token. What
is said is the business of `serve_app.engines.script_writer`.

*Divergent*, with `options.divergent`: every word carries the mark of the run that wrote it, `word~a1b2c3`. A stored reply must
then consist of contiguous stretches, one per attempt. A word that an earlier attempt left unfinished stays as it is and counts,
so the k-th word of a reply is the k-th word of the script, whoever wrote it.

*Paced*, with `words_per_second`: the first word at once, each further one at its own due time, so the speed does not drift.

With `drills: true`, and only then, these words in the last message of the user prove the laws. They act after the third word of
the whole reply, or at once where an earlier attempt came that far:

- `poison-kill` ends this process with SIGKILL;
- `drill-raise` raises an EngineError;
- `drill-hang` says no more and never ends, until cancelled;
- `drill-silent` ends without a word.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, EngineStatus, Prefix, Prompt
from serve_app.chat.errors import ContinuationRefused, EngineError, ModelNotServed
from serve_app.chat.events import Usage
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.engines.script_writer import write_reply

_INFO = EngineInfo(kind="scripted", model="scripted-1", language_model=False)
_STATUS = EngineStatus(models=(_INFO.model,))
_DRILLS = ("poison-kill", "drill-raise", "drill-hang", "drill-silent")
_DRILL = re.compile(rf"(?<![\w-])(?:{'|'.join(_DRILLS)})(?![\w-])")
_WORDS_BEFORE_A_DRILL = 3
_CHANGED = "another engine said it, or the history, the personality or the options of this turn are others than they were."
_MARK = 6
"""Characters of the run that mark a divergent word: 24 random bits, plenty to tell the attempts of one turn apart."""
_GRAIN = 0.005
"""Seconds. Due times closer together than this are slept for together: an event loop's timers are about a millisecond coarse."""


_piece = lru_cache(maxsize=8_192)(EnginePiece)
"""Pieces are values, and a script has few words: sharing them makes a reply at once a fifth cheaper than making each anew."""


class ScriptedConfig(BaseModel):
    """How the scripted engine runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["scripted"] = Field("scripted", description="Tells the engines' configurations apart.")
    words_per_second: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Speed of a reply in words per second where the request asks for none; null: at once, so that a laptop "
        "answers immediately and a measurement measures the system. 10 to 20 look like somebody speaking.",
    )
    drills: bool = Field(
        False,
        description="Obey the drill words, one of which kills the process. Off, because any user could type them; on in tests.",
    )


class Pace:
    """Lets one step through at each due time: the first at once, the n-th n/speed seconds later, however late the others were."""

    def __init__(self, per_second: float, clock: Callable[[], float], sleep: Callable[[float], Awaitable[object]]) -> None:
        """Start now. `clock` is monotonic, in seconds; `sleep` waits for so many of them."""
        self._interval = 1 / per_second
        # Above 1/_GRAIN steps a second some come early, by less than _GRAIN; below, none does.
        self._early = _GRAIN if self._interval < _GRAIN else 0.0
        self._clock, self._sleep = clock, sleep
        self._start, self._steps = clock(), 0

    async def step(self) -> None:
        """Return when the next step is due; without suspending, if it is overdue."""
        ahead = self._start + self._steps * self._interval - self._clock()
        self._steps += 1
        if ahead > self._early:
            await self._sleep(ahead)


class ScriptedEngine(Engine):
    """Answers from the personality's script. Holds nothing between replies; any number may run at once."""

    def __init__(
        self,
        config: ScriptedConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Keep `config`; `clock` and `sleep` pace the replies and are given by tests."""
        self._config, self._clock, self._sleep = config, clock, sleep

    @property
    def info(self) -> EngineInfo:
        """What this engine is: no language model."""
        return _INFO

    @property
    def status(self) -> EngineStatus:
        """Its one model, always ready."""
        return _STATUS

    async def start(self) -> None:
        """Do nothing: it needs nothing."""

    async def check(self) -> None:
        """Return: it can always generate."""

    async def close(self) -> None:
        """Do nothing: it holds nothing."""

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        """Yield the rest of the reply, a word with its following space at a time; the last piece carries the usage.

        Without a pace it never suspends, so a reader that never does either keeps the event loop to itself. Continued from the
        whole reply, it yields one piece without text, for the usage.

        Raises:
            ContinuationRefused: `continue_from` is no beginning of the reply, as when another engine said it.
            ModelNotServed: a language model is asked for by its name.
            EngineRejected: the script has no words.
            EngineError: a drill asked for it.
        """
        if prompt.model not in ("", _INFO.model):
            raise ModelNotServed(f"This pool has no model {prompt.model}: it speaks from scripts, as {_INFO.model}.")
        drill = self._drill(prompt)
        if drill == "drill-silent":
            return
        words, said = write_reply(prompt, options), continue_from.text
        texts = _divergent(words, said, run[:_MARK]) if options.divergent else _remaining(words, said)
        if drill:
            del texts[max(0, _WORDS_BEFORE_A_DRILL - (len(words) - len(texts))) :]
        last = "" if drill or not texts else texts.pop()
        speed = self._config.words_per_second if options.words_per_second is None else options.words_per_second
        if speed is None:
            for text in texts:
                yield _piece(text)
        else:
            pace = Pace(speed, self._clock, self._sleep)
            for text in texts:
                await pace.step()
                yield _piece(text)
            if last:
                await pace.step()
        if drill:
            await _obey(drill)
        yield EnginePiece(last, usage=Usage(prompt_tokens=_prompt_words(prompt), completion_tokens=len(words)))

    def _drill(self, prompt: Prompt) -> str:
        """Return the drill that the user's last message asks for; empty if none, or if they are not allowed."""
        if not self._config.drills:
            return ""
        asked = next((message.content for message in reversed(prompt.messages) if message.role == Role.USER), "")
        found = _DRILL.search(asked)
        return found[0] if found else ""


async def _obey(drill: str) -> None:
    """Do what `drill` says; never returns."""
    if drill == "poison-kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if drill == "drill-raise":
        raise EngineError("The message asked for this failure: drill-raise.")
    await asyncio.Event().wait()


def _remaining(words: list[str], said: str) -> list[str]:
    """Return what is left to say of `words` after `said`, one text per word, the first perhaps the rest of a word."""
    if not said:
        return [f"{word} " for word in words[:-1]] + words[-1:]
    reply = " ".join(words)
    if not reply.startswith(said):
        raise ContinuationRefused(f"What was said so far is no beginning of this reply: {_CHANGED}")
    rest = reply[len(said) :]
    if not rest:
        return []
    texts = [f"{text} " for text in rest.split(" ")]
    texts[-1] = texts[-1][:-1]
    # Cut right after a word: the space goes with the next one, because a piece is to be a word.
    return [" " + texts[1], *texts[2:]] if texts[0] == " " else texts


def _divergent(words: list[str], said: str, mark: str) -> list[str]:
    """Return what is left to say of `words` after `said`, marked; where `said` ends inside a word, that word stays as it is."""
    begun = said.split()
    fits = len(begun) <= len(words) and all(old.startswith(f"{word}~") for old, word in zip(begun[:-1], words, strict=False))
    if not fits or (begun and not f"{words[len(begun) - 1]}~".startswith(begun[-1][: len(words[len(begun) - 1]) + 1])):
        raise ContinuationRefused(f"What was said so far is no beginning of this reply, whatever the marks: {_CHANGED}")
    texts = [f"{word}~{mark} " for word in words[len(begun) :]]
    if texts:
        texts[-1] = texts[-1][:-1]
        if begun and not said[-1].isspace():
            texts[0] = f" {texts[0]}"
    return texts


@lru_cache(maxsize=64)
def _count(text: str) -> int:
    return len(text.split())


def _prompt_words(prompt: Prompt) -> int:
    """Count the words of the system prompt, which is long and always the same, and of the messages."""
    return _count(prompt.personality.system) + sum(len(message.content.split()) for message in prompt.messages)
