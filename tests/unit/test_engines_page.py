"""docs/engines.md: every engine has its section with every option, and what it shows to copy is right."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from deployments.config import PoolArgs
from serve_app.chat.errors import EngineError
from serve_app.chat.personalities import PoolChoice
from serve_app.engines import EngineConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text()
CONFIGS = {one.model_fields["kind"].default: one for one in get_args(get_args(EngineConfig)[0])}
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_engine_is_in_the_table_and_has_a_section_with_its_options_and_its_second_path(kind: str) -> None:
    assert f"[`{kind}`](#{kind})" in PAGE
    section = PAGE.split(f"\n### {kind}\n")[1].split("\n### ")[0]
    assert "econd path*" in section
    left_to_the_reader = {name for name in CONFIGS[kind].model_fields if name.endswith("_s")} | {"kind", "url"}
    for name in CONFIGS[kind].model_fields.keys() - left_to_the_reader:
        assert f"`{name}`" in section, name


def test_the_examples_are_configurations() -> None:
    pools = [application for example in EXAMPLES for application in example.get("applications", ())]
    assert {PoolArgs.model_validate(pool["args"]).engine.kind for pool in pools} >= {"ollama", "openai_compatible"}
    (chain,) = [example["pools"] for example in EXAMPLES if "pools" in example]
    assert [PoolChoice.model_validate(choice).pool for choice in chain] == ["gpu", "ollama"]


def test_every_error_of_an_engine_is_told() -> None:
    table = PAGE.split("### Errors")[1].split("### Continuation")[0]
    for kind in (EngineError, *EngineError.__subclasses__()):
        assert f"`{kind.__name__}`" in table or kind.__name__ == "EmptyReply", kind.__name__


def test_the_files_that_the_page_names_are_there() -> None:
    for name in re.findall(r"`((?:serve_app|tests|configs|docs)/[\w/.]+\.\w+)`", PAGE):
        assert (Path(__file__).resolve().parents[2] / name).is_file() or "NAME" in name, name
