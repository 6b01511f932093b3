"""Copying the project to where a node lives: the code as it is here, configuration only where the operator has none."""

import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.settings import PROJECT_ROOT

_FOLDERS = ("serve_app", "deployments", "cluster")
_FILES = ("pyproject.toml", "requirements.lock")
CLUSTER_FILE = Path("configs/cluster.yaml")


def check() -> None:
    """Make sure that there is a whole project to copy.

    Raises:
        LifecycleError: Aurora runs from something else than a checkout.
    """
    if missing := [name for name in (*_FOLDERS, *_FILES, "configs") if not (PROJECT_ROOT / name).exists()]:
        raise LifecycleError(f"{PROJECT_ROOT} lacks {', '.join(missing)}: install a node from a checkout of the project.")


def copy_code(prefix: Path) -> int:
    """Make the code in `prefix` the same as here, and return how many files that changed."""
    if prefix == PROJECT_ROOT:
        return 0
    changed = sum(_copy(PROJECT_ROOT / name, prefix / name) for name in _FILES)
    for name in _FOLDERS:
        wanted = set(_below(PROJECT_ROOT / name))
        for extra in set(_below(prefix / name)) - wanted:
            (prefix / name / extra).unlink()
            changed += 1
        changed += sum(_copy(PROJECT_ROOT / name / path, prefix / name / path) for path in wanted)
    return changed


def copy_configs(prefix: Path) -> list[Path]:
    """Copy the configuration that `prefix` lacks; return the files that are otherwise there.

    Those stay as they are: the operator may have written them. What the project brings lies beside each, as NAME.new.
    """
    differing: list[Path] = []
    if prefix == PROJECT_ROOT:
        return differing
    for path in sorted(_below(PROJECT_ROOT / "configs")):
        source, target = PROJECT_ROOT / "configs" / path, prefix / "configs" / path
        if target == prefix / CLUSTER_FILE:
            continue
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            _copy(source, target.with_name(f"{target.name}.new"))
            differing.append(target)
        else:
            _copy(source, target)
    return differing


def copy_cluster_file(config: Path, cluster: ClusterFile, prefix: Path) -> Path:
    """Copy the cluster file, with the files that it names beside itself, and return where it is now.

    A token that is not there yet is left out.

    Raises:
        LifecycleError: it names one by a path that leads out of its folder.
    """
    folder = config.absolute().parent
    for named in filter(None, (cluster.serve_config, cluster.ray.token_file)):
        if not named.is_relative_to(folder):
            continue  # an absolute path: the same on every node
        beside = named.relative_to(folder)
        if ".." in beside.parts:
            raise LifecycleError(f"{config} names {beside}, out of its own folder: name an absolute path, or one beside it.")
        if named.exists():
            _copy(named, (prefix / CLUSTER_FILE).parent / beside, secret=named == cluster.ray.token_file)
    _copy(config, prefix / CLUSTER_FILE, secret=True)
    return prefix / CLUSTER_FILE


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder)


def _copy(source: Path, target: Path, *, secret: bool = False) -> bool:
    """Copy a file, readable by all unless it is secret; tell whether it was another before."""
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    shutil.copyfile(source, target)
    if not secret:
        target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
    return True
