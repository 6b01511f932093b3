"""What docs/engines.md has people type is enough for what it promises."""

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "engines.md"

IMPORTING = """
import sys, sysconfig, warnings
from importlib.machinery import PathFinder

SITE = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}

class OnlyWhatIsInstalled:
    def find_spec(self, name, path=None, target=None):
        if name not in MISSING:
            return None
        if found := PathFinder.find_spec(name, [folder for folder in sys.path if folder not in SITE]):
            return found  # Ray carries some packages in a folder of its own
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyWhatIsInstalled())
warnings.simplefilter("ignore")  # Ray's own, at its import
import deployments.app
"""


def installed_by_the_page() -> list[Requirement]:
    """Return what the page has pip install for a pool of `vllm`."""
    commands = PAGE.read_text().replace("\\\n", " ")
    found = re.search(r"^\S*\.venv-vllm/bin/pip install (?!--no-deps)(.*)$", commands, re.MULTILINE)
    assert found
    return [Requirement(word) for word in shlex.split(found[1])]


def with_dependencies(named: list[Requirement]) -> set[str]:
    """Return the distributions that pip installs for `named`, as far as this environment has them (it has no vLLM)."""
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(one.name), extra) for one in named for extra in ("", *one.extras)]
    while waiting:
        name, extra = one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        try:
            needs = [Requirement(line) for line in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), of) for of in ("", *need.extras)]
    return {name for name, _ in found}


def import_with(named: list[Requirement]) -> subprocess.CompletedProcess[str]:
    """Import what Serve builds every application from, with nothing else than `named`, what those need, and Aurora."""
    there = with_dependencies(named) | {"aurora"}
    missing = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if not there & {canonicalize_name(one) for one in distributions}
    }
    code = f"MISSING = {missing!r}\n{IMPORTING}"
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=100)


def test_the_environment_of_vllm_can_import_the_pool() -> None:
    done = import_with(installed_by_the_page())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["fastapi-offline", "orjson", "pydantic-settings", "ray", "redis"])
def test_without_one_of_them_it_could_not(name: str) -> None:
    done = import_with([one for one in installed_by_the_page() if one.name != name])
    assert f"ModuleNotFoundError: No module named '{name.replace('-', '_')}'" in done.stderr


@pytest.mark.parametrize("file", ["configs/cluster-serve.yaml", "cluster/kubernetes/rayservice.yaml"])
def test_what_is_to_be_put_into_the_configuration_is_that_environment(file: str) -> None:
    line = re.compile(r"^ *(?:# )?runtime_env: \{py_executable: (\S+)\}", re.MULTILINE)
    (told,) = line.findall(PAGE.read_text())
    assert told == "/opt/aurora-node/.venv-vllm/bin/python"
    assert f"python3 -m venv {told.removesuffix('/bin/python')}\n" in PAGE.read_text()
    assert set(line.findall((PROJECT / file).read_text())) == {told}
