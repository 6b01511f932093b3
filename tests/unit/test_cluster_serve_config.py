"""Rendering a Serve configuration file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.failures import LifecycleError
from cluster.serve_config import as_yaml, render

CONFIG: dict[str, Any] = {
    "http_options": {"port": 1, "keep_alive_timeout_s": 7},
    "applications": [
        {"name": "scripted", "args": {"engine": {"kind": "scripted"}}},
        {"name": "chat", "args": {"personalities": "people"}, "deployments": [{"name": "Ingress", "num_replicas": 3}]},
    ],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "b.yaml").write_text("name: second\n")
    (tmp_path / "people" / "a.yaml").write_text("name: first\nscript: {greetings: [Höi]}\n")
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "some.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return file


def test_personalities_go_to_ingress_and_router_in_the_order_of_their_files(file: Path) -> None:
    chat = render(file, host="127.0.0.1", port=8000)["applications"][1]
    given = {deployment["name"]: deployment["user_config"] for deployment in chat["deployments"]}
    expected = {"personalities": [{"name": "first", "script": {"greetings": ["Höi"]}}, {"name": "second"}]}
    assert given == {"Ingress": expected, "PersonalityRouter": expected}


def test_what_the_file_says_of_a_deployment_stays_and_an_application_without_personalities_is_untouched(file: Path) -> None:
    scripted, chat = render(file, host="127.0.0.1", port=8000)["applications"]
    assert scripted == CONFIG["applications"][0]
    assert chat["args"] == {"personalities": "people"}
    assert next(one for one in chat["deployments"] if one["name"] == "Ingress")["num_replicas"] == 3


def test_the_address_comes_from_the_settings_and_the_other_http_options_from_the_file(file: Path) -> None:
    assert render(file, host="0.0.0.0", port=9)["http_options"] == {"host": "0.0.0.0", "port": 9, "keep_alive_timeout_s": 7}


def test_the_printed_form_is_plain_yaml_without_references(file: Path) -> None:
    rendered = render(file, host="127.0.0.1", port=8000)
    text = as_yaml(rendered)
    assert yaml.safe_load(text) == rendered
    assert "Höi" in text
    assert "&id" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "not a YAML mapping"),
        ("a: 1", "applications"),
        ("applications: [{name: x, args: {personalities: nowhere}}]", "nowhere"),
    ],
)
def test_a_file_of_another_shape_is_named_in_one_line(file: Path, content: str, words: str) -> None:
    file.write_text(content)
    with pytest.raises(LifecycleError, match=words) as caught:
        render(file, host="127.0.0.1", port=8000)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_named(file: Path) -> None:
    with pytest.raises(LifecycleError, match="No such file"):
        render(file.with_name("other.yaml"), host="127.0.0.1", port=8000)
    for personality in (file.parent.parent / "people").iterdir():
        personality.unlink()
    with pytest.raises(LifecycleError, match="no personality"):
        render(file, host="127.0.0.1", port=8000)


def test_every_configuration_of_the_project_renders() -> None:
    folder = Path(__file__).parents[2] / "configs"
    configs = {*folder.glob("*.yaml")} - {folder / "cluster.yaml"}  # that one is no Serve configuration
    assert configs
    for config in configs:
        assert render(config, host="127.0.0.1", port=8000)["applications"]
