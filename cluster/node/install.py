"""Installing a node where it is to live: code, Python environment, configuration, Redis, units, compose file.

A list of steps, each of which leaves alone what is already as it should be: installing again, after an update of the
project or of the cluster file, does what is needed. Nothing is started, and nothing that runs is stopped.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cluster import cluster_file, packages, redis_conf, units
from cluster.failures import LifecycleError
from cluster.node import project_copy, python_environment
from cluster.node.installation import HOME, Installation
from cluster.progress import Progress
from cluster.redis_server import parse_version, program_version

Step = tuple[str, Callable[[Installation], None]]
"""What to say of a step, and the step."""

_COMMAND = Path("/usr/local/bin/aurora-cli")
_CONTAINER = Path(__file__).parents[1] / "container"
# Debian's packages bring units of their own, which would take our ports.
_DEBIAN_UNITS = ("redis-server.service", "redis-sentinel.service")


def run(node: Installation, progress: Progress, *, dry_run: bool) -> None:
    """Install, or say what would be done.

    Raises:
        LifecycleError: something is missing or refuses: says what to do.
    """
    if not dry_run:
        check(node)
    what = "head" if node.is_head else "node"
    progress.say(f"{'Would install' if dry_run else 'Installing'} {node.name}, {what} of {node.cluster.name}:")
    for title, do in steps(node):
        if dry_run:
            progress.say(f"  · {title}")
        else:
            with progress.step(title):
                do(node)
    for remark in node.remarks:
        progress.say(f"  ! {remark}")
    if not dry_run:
        progress.say(f"To start it: {node.how_to_start}")


def check(node: Installation) -> None:
    """Make sure that it can be installed here.

    Raises:
        LifecycleError: it cannot: says what to do.
    """
    if node.systemd and os.geteuid() != 0:  # first: without it, the project may not even be readable
        raise LifecycleError("Units and a user of their own need root: sudo aurora-cli node install, or say --no-systemd.")
    project_copy.check()
    if not node.systemd:
        return
    if not units.runs_systemd():
        raise LifecycleError("This machine is not run by systemd: say --no-systemd, and start the node by other means.")
    if node.redis_files and packages.find("redis-server") and (theirs := [each for each in _DEBIAN_UNITS if units.enabled(each)]):
        raise LifecycleError(f"This machine starts a Redis of its own, on our ports: systemctl disable --now {' '.join(theirs)}.")


def steps(node: Installation) -> list[Step]:
    """Return what is to be done, in order."""
    found: list[Step] = [
        (f"The project, in {node.prefix}", _project),
        ("Python packages that requirements.lock names (some minutes the first time)", _python),
    ]
    if node.systemd:
        found.append((f"The user {units.USER}", _user))
    if node.redis_files:
        found.append((f"{', '.join(path.name for path in node.redis_files)} for Redis 7", _redis))
    found += [
        ("compose.yaml and .env, for containers and units", _compose),
        (f"Units {', '.join(node.unit_names)}", _units),
        ("Who may read and write what", _owners),
    ]
    return found


def _project(node: Installation) -> None:
    advice = "become root (sudo aurora-cli node install), or give another --prefix"
    try:
        node.prefix.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LifecycleError(f"{node.prefix} cannot be made ({error.strerror}): {advice}.") from error
    if not os.access(node.prefix, os.W_OK):
        raise LifecycleError(f"You may not write to {node.prefix}: {advice}.")
    project_copy.copy_cluster_file(node.config, node.cluster, node.prefix)
    for path in project_copy.copy_configs(node.prefix):
        node.remarks.append(f"{path} is kept as it is; the project's own is {path.name}.new beside it.")
    if project_copy.copy_code(node.prefix) and (node.prefix / HOME).exists():
        node.remarks.append("The code has changed: start the node anew when it suits.")


def _python(node: Installation) -> None:
    if not python_environment.up_to_date(node.prefix):
        python_environment.make(node.prefix)
    python_environment.compile_code(node.prefix)


def _user(node: Installation) -> None:
    try:
        pwd.getpwnam(units.USER)
    except KeyError:
        home = ["--home-dir", str(node.prefix / HOME), "--no-create-home", "--shell", "/usr/sbin/nologin"]
        _call(["useradd", "--system", "--user-group", *home, units.USER], f"The user {units.USER} cannot be made")
    advice = "install with a Python that everybody may run, such as /usr/bin/python3"
    _call(["runuser", "-u", units.USER, "--", str(node.python), "-c", ""], f"{units.USER} cannot run {node.python}: {advice}")


def _redis(node: Installation) -> None:
    fresh = packages.find("redis-server") is None
    for path, text in node.redis_files.items():
        if node.systemd:
            _ensure_redis(redis_conf.PROGRAMS[path.stem])
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(text)
        elif not redis_conf.says_the_same(path.read_text(), text):
            node.remarks.append(f"{path} is kept, though the cluster file says otherwise: Redis writes into it; correct it.")
    if fresh and node.systemd:
        units.disable(*_DEBIAN_UNITS)


def _ensure_redis(program: str) -> None:
    path = packages.ensure(program)
    if parse_version(version := program_version(path)) < redis_conf.OLDEST:
        raise LifecycleError(f"Aurora's cluster needs Redis 7.0 or newer, and {path} is {version}: install a newer one.")


def _compose(node: Installation) -> None:
    for name in ("compose.yaml", "compose.gpu.yaml"):
        shutil.copyfile(_CONTAINER / name, node.prefix / name)
    shutil.copyfile(_CONTAINER / "Dockerfile.dockerignore", node.prefix / ".dockerignore")
    uid, gid = node.owner
    lines = [
        "# Written by `aurora-cli node install`: what the units and compose.yaml are told about this node.",
        f"AURORA_NODE_START={node.start_options}",
        f"AURORA_NODE_FOLDER={node.prefix}",
        f"AURORA_UID={uid}",
        f"AURORA_GID={gid}",
    ]
    if Path("/dev/nvidiactl").exists():
        lines.append("COMPOSE_FILE=compose.yaml:compose.gpu.yaml")
    (node.prefix / ".env").write_text("\n".join([*lines, ""]))


def _units(node: Installation) -> None:
    programs = {name: path for name in set(redis_conf.PROGRAMS.values()) if (path := packages.find(name))}
    folder = units.write(node.unit_names, prefix=node.prefix, programs=programs)
    if not node.systemd:
        return
    for name in units.hand_to_systemd(folder, node.unit_names):
        node.remarks.append(f"{name} is still there and no longer this node's part: systemctl disable --now {name}")
    if not _COMMAND.exists():
        _COMMAND.symlink_to(node.command)


def _owners(node: Installation) -> None:
    uid, gid = node.owner
    for name in (HOME, *(path.stem for path in node.redis_files)):
        folder = node.prefix / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
    config = node.prefix / project_copy.CLUSTER_FILE
    os.chown(config, os.geteuid(), gid)
    config.chmod(0o640)  # a Redis URL in it may hold a password
    token = cluster_file.load(config).ray.token_file
    if token is None:
        return
    if not token.exists():
        make = f"(umask 077; openssl rand -hex 32 > {token})"
        node.remarks.append(f"Ray's token is not there yet: {make}; give every node the same, and install again.")
    elif token.is_relative_to(node.prefix):
        os.chown(token, uid, gid)
        token.chmod(0o600)
    elif token.stat().st_uid != uid:
        node.remarks.append(f"{token} must be {units.USER}'s own: chown {units.USER} {token}; chmod 600 {token}")


def _call(command: list[str], failure: str) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LifecycleError(f"{failure} ({' '.join(result.stderr.split()) or f'exit code {result.returncode}'}).")
