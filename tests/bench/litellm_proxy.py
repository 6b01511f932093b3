"""The LiteLLM proxy, for comparison: one worker, nothing switched on that it can do without, in an environment of its own."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import psutil
import yaml

from tests.bench.starting import ROOT, program
from tests.support.redis_process import free_port

PROGRAM = ROOT / ".venv-litellm" / "bin" / "litellm"
HOW_TO_MAKE = "make bench-litellm"


def is_there() -> bool:
    """Whether its environment was made."""
    return shutil.which(PROGRAM) is not None


def version() -> str:
    """Return which LiteLLM it is, as its environment says."""
    found = sorted(PROGRAM.parents[1].glob("lib/*/site-packages/litellm-*.dist-info"))
    return found[0].name.removeprefix("litellm-").removesuffix(".dist-info") if found else ""


def start(stack: ExitStack, folder: Path, ollama_url: str, model: str) -> tuple[int, list[psutil.Process]]:
    """Start the proxy in front of the Ollama there; return its port and its processes.

    Raises:
        NotStarted: it ended, or does not answer.
    """
    port, config = free_port(), folder / "litellm.yaml"
    entry = {"model_name": model, "litellm_params": {"model": f"ollama_chat/{model}", "api_base": ollama_url}}
    general = {"dangerously_permit_weak_or_unset_master_key": True}  # no keys, as the others ask for none either
    config.write_text(yaml.safe_dump({"model_list": [entry], "general_settings": general}))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    command = [str(PROGRAM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    url = f"http://127.0.0.1:{port}/health/liveliness"
    process = program(stack, command, url, log=folder / "litellm.log", env=env, within_s=180)
    return port, [process, *process.children(recursive=True)]
