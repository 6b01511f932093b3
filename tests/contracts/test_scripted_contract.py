"""The scripted engine keeps every promise of the port: at once, at a pace, and with its drills armed."""

import asyncio

import pytest

from serve_app.chat.engine import Engine, Prefix, Prompt, PromptMessage
from serve_app.chat.messages import Role
from serve_app.chat.options import Options
from serve_app.engines import ScriptedConfig, ScriptedEngine, make_engine
from tests.contracts.engine_contract import EngineContract, Request


class TestScriptedAtOnce(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return make_engine(ScriptedConfig())

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        return [(prompt, options, Prefix("No reply of mine begins like this"))]


class TestScriptedAtAPace(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        self.asleep = 0
        return ScriptedEngine(ScriptedConfig(words_per_second=100), clock=lambda: 0.0, sleep=self.doze)

    async def doze(self, seconds: float) -> None:
        self.asleep += 1
        try:
            await asyncio.sleep(0)
        finally:
            self.asleep -= 1

    async def idle(self, engine: Engine) -> bool:
        return self.asleep == 0


class TestScriptedWithDrills(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return make_engine(ScriptedConfig(drills=True))

    @pytest.fixture
    def refused(self, prompt: Prompt, options: Options) -> list[Request]:
        drill = Prompt(prompt.personality, (PromptMessage(Role.USER, "Now: drill-raise!"),))
        return [(drill, options, Prefix()), (drill, Options(words=1), Prefix())]
