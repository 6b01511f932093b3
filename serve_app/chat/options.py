"""What a request or a personality may ask of the engine, and the bounds of it.

`temperature`, `top_p`, `max_tokens` and `seed` are understood by every engine. The rest belong to the scripted engine
and exist for drills; a configuration must allow them.
"""

from pydantic import BaseModel, ConfigDict, Field

from serve_app.chat.errors import OptionRefused


class Options(BaseModel):
    """The options of one turn, pinned at its start so that a later attempt continues with the same ones (law 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(None, ge=0, le=2, description="Sampling temperature.", examples=[0.7])
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling mass.", examples=[0.9])
    max_tokens: int | None = Field(None, ge=1, le=32_768, description="Upper bound of the reply, in tokens.", examples=[512])
    seed: int | None = Field(None, ge=0, le=2**53 - 1, description="Seed of the sampling.", examples=[7])
    words: int | None = Field(
        None, ge=1, le=20_000, description="Scripted engine: length of the reply, in words.", examples=[200]
    )
    words_per_second: float | None = Field(
        None, gt=0, le=100_000, description="Scripted engine: speed of the reply; without it, at once.", examples=[20]
    )
    divergent: bool | None = Field(
        None,
        description="Scripted engine, for drills: every word carries the mark of the attempt that wrote it.",
        examples=[False],
    )

    def over(self, defaults: "Options") -> "Options":
        """Return these options, with `defaults` where nothing was asked for.

        Who asks for a number of words is not held to the default number of tokens. What a personality alone may ask for stays
        with it (`PersonalityOptions`).
        """
        base = defaults.model_dump(exclude_none=True, include=set(Options.model_fields))
        if self.words is not None:
            base.pop("max_tokens", None)
        return Options.model_validate({**base, **self.asked()})

    def asked(self) -> dict[str, object]:
        """Return only what was asked for, for storing and for engines that know their own defaults."""
        return self.model_dump(exclude_none=True)


class PersonalityOptions(Options):
    """The options of a personality: what holds where a request asks for nothing, and what no request may ask for."""

    context_window: int | None = Field(
        None,
        ge=1_024,
        le=2_097_152,
        description="Tokens of prompt and reply together, at most; older turns are left out beyond. Less than the pool's own "
        "window makes long conversations cheaper, more changes nothing: the window that a model is loaded with is the pool's, so "
        "that no personality makes it load anew.",
        examples=[4_096],
    )


class OptionLimits(BaseModel):
    """What a configuration allows; lives in the chat application's arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drill_options: bool = Field(False, description="Allow words, words_per_second and divergent.")
    max_tokens: int = Field(8_192, ge=1, description="Largest max_tokens a request may ask for.")
    max_words: int = Field(5_000, ge=1, description="Largest number of words a request may ask the scripted engine for.")

    def check(self, options: Options) -> Options:
        """Return `options` if they are allowed.

        Raises:
            OptionRefused: naming the option and what is allowed instead.
        """
        drill = [name for name in ("words", "words_per_second", "divergent") if getattr(options, name) is not None]
        if drill and not self.drill_options:
            raise OptionRefused(f"This configuration does not allow the options {', '.join(drill)}; leave them out.")
        if options.max_tokens is not None and options.max_tokens > self.max_tokens:
            raise OptionRefused(f"max_tokens may be at most {self.max_tokens} here.")
        if options.words is not None and options.words > self.max_words:
            raise OptionRefused(f"words may be at most {self.max_words} here.")
        return options
