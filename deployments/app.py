"""Builders of the Serve applications, named by `import_path` in `configs/*.yaml`."""

from pathlib import Path
from typing import Any

from ray.serve import Application

from deployments.config import ChatArgs, PoolArgs, gather, load_personalities
from deployments.inference import Inference
from deployments.ingress import Ingress
from deployments.router import PersonalityRouter

PROJECT = Path(__file__).resolve().parents[1]
"""Relative folders in a configuration are meant from here: replicas have working directories of their own."""


def pool(args: dict[str, Any]) -> Application:
    """Return the application of one pool: `Inference` on one engine.

    Raises:
        pydantic.ValidationError: `args` are not `PoolArgs`.
    """
    deployment: Any = Inference  # what the decorator makes of the class has no type of its own
    application: Application = deployment.bind(PoolArgs.model_validate(args))
    return application


def chat(args: dict[str, Any]) -> Application:
    """Return the chat application: `Ingress` and `PersonalityRouter`.

    The personalities of the folder are the `user_config` here; `aurora-cli deploy` writes them into the configuration
    itself, so that changing one is an update in place.

    Raises:
        pydantic.ValidationError: `args` are not `ChatArgs`.
        ValueError: a personality file is wrong.
    """
    checked = ChatArgs.model_validate(args)
    members = load_personalities(PROJECT / checked.personalities)
    user_config = {"personalities": [member.model_dump(mode="json") for member in members]}
    personalities = gather(user_config, checked)
    routers: Any = PersonalityRouter
    ingresses: Any = Ingress
    router = routers.options(user_config=user_config).bind(checked)
    application: Application = ingresses.options(user_config=user_config).bind(checked, router, personalities)
    return application
