"""Engines over models that are made on the spot, each started once and again only where a test has ended it.

Started processes read the environment, and so does vLLM at its import: it is set before anything else happens.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from tests.vllm.scratch import SCRATCH

os.environ |= {
    "TMPDIR": SCRATCH,
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two cores are shared with all the rest
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on a CPU: no worker process below the engine core
    "TQDM_DISABLE": "1",
}

import pytest

from serve_app.engines import VllmConfig, VllmEngine
from tests.vllm import tiny_model
from tests.vllm.engines import BYTES, CHARACTERS, config, ready


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the byte-level tokenizer."""
    return tiny_model.make(tmp_path_factory.mktemp(BYTES), tiny_model.byte_level())


@pytest.fixture(scope="session")
def character_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the character tokenizer, whose chat template knows no system prompt."""
    return tiny_model.make(tmp_path_factory.mktemp(CHARACTERS), tiny_model.character(), template=tiny_model.WITHOUT_SYSTEM)


@pytest.fixture(scope="session")
async def _bytes(byte_folder: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(config(byte_folder))
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
async def _characters(character_folder: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(config(character_folder, stop=("жα", "\n\n")))
    yield engine
    await engine.close()


@pytest.fixture
async def byte_engine(_bytes: VllmEngine) -> VllmEngine:
    """An engine with the byte-level tokenizer, ready whatever the tests before did to it."""
    return await ready(_bytes)


@pytest.fixture
async def character_engine(_characters: VllmEngine) -> VllmEngine:
    """An engine with the character tokenizer, ready whatever the tests before did to it."""
    return await ready(_characters)


@pytest.fixture
def config_of_bytes(byte_folder: Path) -> VllmConfig:
    return config(byte_folder)
