"""Every file in `configs/` loads through the models that a deployment puts it through, and says nothing that is not so."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deployments.config import ChatArgs, PoolArgs, gather, load_personalities
from serve_app.chat.personalities import Personality
from serve_app.engines import make_engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, at its import
    from ray.serve.schema import (
        DeploymentSchema,
        HTTPOptionsSchema,
        LoggingConfig,
        RayActorOptionsSchema,
        ServeApplicationSchema,
        ServeDeploySchema,
    )

PROJECT = Path(__file__).resolve().parents[2]
CLUSTER_FILE = PROJECT / "configs" / "cluster.yaml"  # test_cluster_file.py looks at it
SERVE_FILES = sorted({*(PROJECT / "configs").glob("*.yaml")} - {CLUSTER_FILE})
PERSONALITY_FILES = sorted((PROJECT / "configs" / "personalities").glob("*.yaml"))
Config = dict[str, Any]
each_serve_file = pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.name)
each_personality = pytest.mark.parametrize("path", PERSONALITY_FILES, ids=lambda path: path.name)


def load(path: Path) -> Config:
    data = yaml.safe_load(path.read_text())
    assert isinstance(data, dict)
    return data


def model_of(application: Config) -> type[ChatArgs | PoolArgs]:
    return {"deployments.app:chat": ChatArgs, "deployments.app:pool": PoolArgs}[application["import_path"]]


def nested(data: Config, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all objects in a configuration whose keys are ours to choose wrongly."""
    yield at
    for key, value in data.items():
        if isinstance(value, dict):
            yield from nested(value, (*at, key))


def test_there_are_files_and_each_is_looked_at() -> None:
    found = {p for p in (PROJECT / "configs").rglob("*") if p.is_file()}
    assert found == {CLUSTER_FILE, *SERVE_FILES, *PERSONALITY_FILES}
    assert {p.stem for p in PERSONALITY_FILES} == {"robbie", "allanbot", "kristina"}


@each_serve_file
def test_a_serve_file_is_one_that_serve_takes(path: Path) -> None:
    assert ServeDeploySchema.model_validate(load(path)).applications


@each_serve_file
def test_the_arguments_of_every_application_are_those_of_its_builder(path: Path) -> None:
    for application in load(path)["applications"]:
        model_of(application).model_validate(application["args"])


@each_serve_file
def test_a_typo_anywhere_in_the_arguments_fails(path: Path) -> None:
    for application in load(path)["applications"]:
        for at in nested(application["args"]):
            if at == ("pools",):
                continue  # its keys are names
            broken = copy.deepcopy(application["args"])
            place = broken
            for key in at:
                place = place[key]
            place["tpyo"] = 1
            with pytest.raises(ValidationError):
                model_of(application).model_validate(broken)


@each_serve_file
def test_serves_own_options_are_options_of_serve_because_serve_overlooks_a_typo(path: Path) -> None:
    data = load(path)
    known = [
        (ServeDeploySchema, data),
        (HTTPOptionsSchema, data["http_options"]),
        (LoggingConfig, data.get("logging_config", {})),
        *((ServeApplicationSchema, a) for a in data["applications"]),
        *((DeploymentSchema, d) for a in data["applications"] for d in a["deployments"]),
        *((RayActorOptionsSchema, d["ray_actor_options"]) for a in data["applications"] for d in a["deployments"]),
    ]
    for schema, given in known:
        assert set(given) <= set(schema.model_fields), schema.__name__


@each_serve_file
def test_the_chat_says_of_every_pool_what_its_engine_is(path: Path) -> None:
    applications = load(path)["applications"]
    engines = {
        a["name"]: make_engine(PoolArgs.model_validate(a["args"]).engine).info for a in applications if model_of(a) is PoolArgs
    }
    for application in applications:
        if model_of(application) is ChatArgs:
            said = ChatArgs.model_validate(application["args"]).pools
            assert {name: (p.engine, p.model, p.language_model) for name, p in said.items()} == {
                name: (info.kind, info.model, info.language_model) for name, info in engines.items()
            }


@each_serve_file
def test_the_pools_that_personalities_name_exist_and_the_default_is_one_of_them(path: Path) -> None:
    applications = load(path)["applications"]
    for application in applications:
        if model_of(application) is ChatArgs:
            args = ChatArgs.model_validate(application["args"])
            members = load_personalities(PROJECT / args.personalities)
            assert args.default_personality in {m.name for m in members}
            gathered = gather({"personalities": [m.model_dump(mode="json") for m in members]}, args)
            for member in gathered:
                assert {choice.pool for choice in member.pools} <= set(args.pools)
                assert member.pools, "who names no pools is spoken for by all of the configuration"


@each_serve_file
def test_the_drill_words_that_kill_a_replica_are_off(path: Path) -> None:
    for application in load(path)["applications"]:
        if model_of(application) is PoolArgs:
            assert getattr(PoolArgs.model_validate(application["args"]).engine, "drills", False) is False


@each_serve_file
def test_the_names_of_the_deployments_are_those_of_the_classes(path: Path) -> None:
    names = {"deployments.app:chat": {"Ingress", "PersonalityRouter"}, "deployments.app:pool": {"Inference"}}
    for application in load(path)["applications"]:
        assert {d["name"] for d in application["deployments"]} == names[application["import_path"]]


def without_marks(text: str, *begin: str) -> str:
    """Return a configuration in which what is a comment from a line that begins so, as far as it goes, is none."""
    lines, taking = [], False
    for line in text.splitlines():
        indent, mark, rest = line.partition("# ")
        taking = bool(mark) and not indent.strip() and (taking or rest.startswith(begin))
        lines.append(indent + rest if taking else line)
    return "\n".join(lines)


def test_the_pool_that_stands_in_comments_is_one_that_serve_takes_and_a_personality_may_name_it_first() -> None:
    text = without_marks((PROJECT / "configs" / "cluster-serve.yaml").read_text(), "- name: gaming", "gaming: ", "runtime_env: ")
    data = yaml.safe_load(text)
    assert ServeDeploySchema.model_validate(data)
    gpu, gaming, _, chat = data["applications"]
    assert gaming["runtime_env"] == gpu["runtime_env"]
    assert set(gaming) <= set(ServeApplicationSchema.model_fields)
    (deployment,) = gaming["deployments"]
    assert set(deployment) <= set(DeploymentSchema.model_fields)
    assert set(deployment["ray_actor_options"]) <= set(RayActorOptionsSchema.model_fields)
    info = make_engine(PoolArgs.model_validate(gaming["args"]).engine).info
    said = ChatArgs.model_validate(chat["args"]).pools
    assert list(said) == ["gaming", "gpu", "ollama"]
    assert (said["gaming"].engine, said["gaming"].model, said["gaming"].language_model) == (info.kind, info.model, True)
    robbie = without_marks((PROJECT / "configs" / "personalities" / "robbie.yaml").read_text(), "pools: ", "context_window: ")
    member = Personality.model_validate(yaml.safe_load(robbie))
    assert [choice.pool for choice in member.pools] == list(said)
    assert member.window_within(8_192) == 4_096


@each_personality
def test_a_personality_is_called_like_its_file_and_has_a_character(path: Path) -> None:
    member = Personality.model_validate(load(path))
    assert member.name == path.stem
    assert len(member.system) > 500
    assert "script" in " ".join(member.script.what_am_i)


@each_personality
@pytest.mark.parametrize("at", [(), ("script",), ("options",)])
def test_a_typo_in_a_personality_fails(path: Path, at: tuple[str, ...]) -> None:
    data = load(path)
    place = data
    for key in at:
        place = place[key]
    place["tpyo"] = ["x"]
    with pytest.raises(ValidationError):
        Personality.model_validate(data)


def test_a_wrong_personality_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "somebody.yaml").write_text("name: somebody\n")
    with pytest.raises(ValueError, match=r"somebody\.yaml"):
        load_personalities(tmp_path)


def test_a_personality_changes_its_version_with_anything_about_it() -> None:
    one = Personality.model_validate(load(PERSONALITY_FILES[0]))
    again = Personality.model_validate(load(PERSONALITY_FILES[0]))
    changed = one.model_copy(update={"options": one.options.model_copy(update={"temperature": 0.1})})
    assert one.pinned().version == again.pinned().version != changed.pinned().version


def test_the_window_that_a_personality_wants_is_a_bound_and_none_where_it_names_none() -> None:
    data = load(PERSONALITY_FILES[0])
    assert Personality.model_validate(data).window_within(8_192) == 8_192
    bounded = Personality.model_validate({**data, "options": {"context_window": 4_096}})
    assert bounded.window_within(8_192) == 4_096
    assert bounded.window_within(2_048) == 2_048
    assert bounded.pinned().open() == bounded


def test_a_window_that_its_system_prompt_alone_would_fill_is_refused_when_it_is_deployed() -> None:
    data = {**load(PERSONALITY_FILES[0]), "system": "word " * 600, "options": {"context_window": 3_999}}
    with pytest.raises(ValidationError, match="4000 or more"):
        Personality.model_validate(data)
    assert Personality.model_validate({**data, "options": {"context_window": 4_000}})


@pytest.mark.parametrize("data", [{}, {"personalities": []}, {"personalities": [], "tpyo": 1}, None])
def test_a_user_config_without_personalities_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r"personalit|valid"):
        gather(data, _args())


def _args(*pools: str) -> ChatArgs:
    described = {"engine": "scripted", "model": "scripted-1", "language_model": False}
    return ChatArgs.model_validate({"pools": dict.fromkeys(pools or ("scripted",), described)})


def test_a_personality_names_pools_or_takes_those_of_the_configuration_in_its_order() -> None:
    member = load(PERSONALITY_FILES[0])
    chosen = {**member, "name": "chooser", "pools": ["b", {"pool": "a", "model": "m"}]}
    gathered = gather({"personalities": [member, chosen]}, _args("a", "b").model_copy(update={"default_personality": "chooser"}))
    assert [(c.pool, c.model) for c in gathered.get(member["name"]).pools] == [("a", ""), ("b", "")]
    assert [(c.pool, c.model) for c in gathered.get("chooser").pools] == [("b", ""), ("a", "m")]


def test_a_personality_that_names_an_unknown_pool_is_refused_by_its_name() -> None:
    member = {**load(PERSONALITY_FILES[0]), "pools": ["gpu"]}
    with pytest.raises(ValueError, match="gpu"):
        gather({"personalities": [member]}, _args().model_copy(update={"default_personality": member["name"]}))
