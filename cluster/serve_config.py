"""Turning a Serve configuration file of ours into what Serve is told.

Filled in are the personalities, read from their folder, as `user_config` (Serve hands a changed `user_config` to the living
replicas, so a changed personality goes live without a restart), the address of the chat API, and on one machine the model that
its Ollama has.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from cluster.failures import LifecycleError

OLLAMA_POOL = "ollama"
PERSONALITY_DEPLOYMENTS = ("PersonalityRouter", "Ingress")


def render(file: Path, *, host: str, port: int, ollama_model: str = "") -> dict[str, Any]:
    """Return the configuration in `file`, complete; with an `ollama_model`, that one for the pool `ollama`.

    Raises:
        LifecycleError: the file, or a personality it names, is missing or is no YAML of the right shape.
    """
    config = _read(file)
    applications = config.get("applications")
    if not isinstance(applications, list) or not all(isinstance(application, dict) for application in applications):
        raise LifecycleError(f"{file} has no list of `applications`: is it a Serve configuration file?")
    config["http_options"] = {**config.get("http_options", {}), "host": host, "port": port}
    for application in applications:
        folder = (application.get("args") or {}).get("personalities")
        if isinstance(folder, str):
            _give_personalities(application, personalities(file, folder))
        if ollama_model:
            _give_model(application, ollama_model)
    return config


def as_yaml(config: dict[str, Any]) -> str:
    """Return the configuration as text, fit for `serve deploy`."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=130)


def personalities(file: Path, folder: str) -> list[dict[str, Any]]:
    """Return the personalities of `folder`, by file name; the folder is relative to the project that `file` lies in."""
    for root in file.resolve().parents:
        if (root / folder).is_dir():
            found = [_read(path) for path in sorted((root / folder).glob("*.yaml"))]
            if not found:
                raise LifecycleError(f"There is no personality (*.yaml) in {root / folder}.")
            return found
    raise LifecycleError(f"{file} names the folder {folder!r} for its personalities, and there is none above that file.")


def _give_personalities(application: dict[str, Any], found: list[dict[str, Any]]) -> None:
    deployments = application.setdefault("deployments", [])
    for name in PERSONALITY_DEPLOYMENTS:
        deployment = next((entry for entry in deployments if entry.get("name") == name), None)
        if deployment is None:
            deployment = {"name": name}
            deployments.append(deployment)
        # A copy for each, as YAML would write the second as a reference to the first.
        deployment["user_config"] = {**(deployment.get("user_config") or {}), "personalities": deepcopy(found)}


def _give_model(application: dict[str, Any], model: str) -> None:
    args = application.get("args") or {}
    if application.get("name") == OLLAMA_POOL:
        args["engine"]["model"] = model
    elif OLLAMA_POOL in args.get("pools", {}):
        args["pools"][OLLAMA_POOL]["model"] = model


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LifecycleError(f"Cannot read {file}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise LifecycleError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise LifecycleError(f"{file} is not a YAML mapping.")
    return content
