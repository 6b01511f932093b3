"""A node installed in a folder of its own, without systemd, and what systemd and Docker's compose say of it.

The virtual environment, which takes minutes and a package index, is made beforehand, empty, and marked as done.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster import cluster_file, units
from cluster.cli import app
from cluster.failures import LifecycleError
from cluster.node import python_environment
from cluster.node.agreement import code_digest
from cluster.node.install import check
from cluster.node.installation import Installation
from tests.support.programs import program

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[2]
CLUSTER = """
name: test
head: aurora
serve_config: serve.yaml
nodes:
  aurora: {address: 198.18.9.1, sentinel: true}
  star: {address: 198.18.9.2, redis: primary, sentinel: true}
  iceland: {address: 198.18.9.4, redis: replica, sentinel: true, control_redis: true}
ray: {token_file: ray-token}
"""
Install = Callable[..., Result]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else for a moment")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An operator's cluster file, with what it names."""
    folder = tmp_path / "operator"
    folder.mkdir()
    (folder / "cluster.yaml").write_text(CLUSTER)
    (folder / "serve.yaml").write_text((PROJECT / "configs" / "cluster-serve.yaml").read_text())
    (folder / "ray-token").touch(mode=0o600)
    (folder / "ray-token").write_text("0123456789abcdef")
    return folder / "cluster.yaml"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """The folder of a node, with a Python environment in it."""
    prefix = tmp_path / "node"
    environment = prefix / python_environment.FOLDER
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    for name in ("requirements.lock", "pyproject.toml"):
        (prefix / name).write_bytes((PROJECT / name).read_bytes())
    (environment / "bin" / "aurora-cli").write_text("#!/bin/sh\n")
    (environment / "bin" / "aurora-cli").chmod(0o755)
    python_environment.stamp(prefix)
    return prefix


@pytest.fixture
def install(prefix: Path, config: Path) -> Install:
    def run(*more: str, name: str = "iceland", given: Path | None = config, fails: bool = False) -> Result:
        options = ["--name", name, "--prefix", str(prefix), "--no-systemd", *(["--config", str(given)] if given else [])]
        result = CliRunner().invoke(app, ["node", "install", *options, *more])
        assert (result.exit_code != 0) is fails, result.output
        return result

    return run


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and not {".venv", "__pycache__"} & set(path.parts))
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mode) for path in files}


def test_a_node_gets_the_project_its_configuration_its_redis_and_its_units(install: Install, prefix: Path) -> None:
    install()
    found = contents(prefix)
    for folder in ("serve_app", "deployments", "cluster"):
        wanted = contents(PROJECT / folder)
        assert {path.relative_to(folder): found[path][0] for path in found if path.parts[0] == folder} == {
            path: content for path, (content, _) in wanted.items()
        }
    assert code_digest(prefix) == code_digest(PROJECT), "it may join a head that runs from the project"
    assert yaml.safe_load(found[Path("configs/cluster.yaml")][0]) == yaml.safe_load(CLUSTER)
    assert {Path("configs/serve.yaml"), Path("configs/personalities/robbie.yaml")} <= found.keys()
    assert b"AURORA_NODE_START=--join aurora --name iceland" in found[Path(".env")][0]
    assert b"replicaof 198.18.9.2 6379" in found[Path("redis/redis.conf")][0]
    assert {path.name for path in found if path.parts[0] == "units"} == {
        *("aurora-redis.service", "aurora-sentinel.service", "aurora-control-redis.service"),
        *("aurora-worker.service", "aurora.target", "aurora-tmpfiles.conf"),
    }


def test_secrets_are_for_the_node_alone(install: Install, prefix: Path) -> None:
    install()
    modes = {path: mode & 0o777 for path, (_, mode) in contents(prefix).items()}
    assert modes[Path("configs/ray-token")] == 0o600
    assert modes[Path("configs/cluster.yaml")] == 0o640
    assert all((prefix / name).stat().st_mode & 0o777 == 0o700 for name in (".aurora", "redis", "sentinel", "control-redis"))


def test_installing_again_changes_nothing(install: Install, prefix: Path) -> None:
    install()
    before = contents(prefix)
    result = install(given=None)
    assert contents(prefix) == before
    assert "!" not in result.output


def test_what_the_operator_and_redis_wrote_is_kept_and_code_is_not(install: Install, prefix: Path) -> None:
    install()
    robbie, conf = prefix / "configs" / "personalities" / "robbie.yaml", prefix / "redis" / "redis.conf"
    robbie.write_text(robbie.read_text() + "# ours\n")
    conf.write_text(conf.read_text().replace("replicaof 198.18.9.2", "replicaof 198.18.9.4"))
    (prefix / "cluster" / "of_another_version.py").touch()
    (prefix / "cluster" / "cli.py").write_text("")
    result = install()
    assert robbie.read_text().endswith("# ours\n")
    assert (robbie.parent / "robbie.yaml.new").read_text() == (PROJECT / "configs/personalities/robbie.yaml").read_text()
    assert "replicaof 198.18.9.4" in conf.read_text()
    assert not (prefix / "cluster" / "of_another_version.py").exists()
    assert (prefix / "cluster" / "cli.py").read_text() == (PROJECT / "cluster" / "cli.py").read_text()
    assert "robbie.yaml is kept" in result.output
    assert "The code has changed" in result.output


def test_a_redis_whose_place_has_changed_is_pointed_out_and_left_alone(install: Install, prefix: Path, config: Path) -> None:
    install()
    before = (prefix / "redis" / "redis.conf").read_text()
    config.write_text(CLUSTER.replace("198.18.9.4", "198.18.9.5"))
    assert f"{prefix}/redis/redis.conf is kept, though the cluster file says otherwise" in install().output
    assert (prefix / "redis" / "redis.conf").read_text() == before


def test_a_machine_that_the_cluster_file_does_not_name_is_installed_to_join(prefix: Path, config: Path) -> None:
    config.write_text(CLUSTER.replace("198.18.9.1", "127.0.0.1"))
    options = ["--prefix", str(prefix), "--no-systemd", "--config", str(config)]
    joining = ["--name", "newcomer", "--join", "aurora", "--label", "aurora/inference=true"]
    result = CliRunner().invoke(app, ["node", "install", *options, *joining])
    assert result.exit_code == 0, result.output
    line = "AURORA_NODE_START=--join aurora --name newcomer --label aurora/inference=true"
    assert line in (prefix / ".env").read_text().splitlines()
    assert not (prefix / "redis").exists()


def test_a_dry_run_says_every_step_and_takes_none(install: Install, prefix: Path) -> None:
    before = contents(prefix)
    result = install("--dry-run")
    assert all(word in result.output for word in ("requirements.lock", "redis.conf", "aurora-worker.service", "compose.yaml"))
    assert contents(prefix) == before


def test_a_missing_token_is_something_still_to_do(install: Install, config: Path) -> None:
    (config.parent / "ray-token").unlink()
    result = install()
    assert "Ray's token is not there yet: (umask 077; openssl rand -hex 32" in result.output


def test_a_cluster_file_that_names_something_out_of_its_folder_is_refused(install: Install, config: Path) -> None:
    config.write_text(CLUSTER.replace("serve_config: serve.yaml", "serve_config: ../serve.yaml"))
    result = install(fails=True)
    assert "names ../serve.yaml, out of its own folder" in " ".join(result.output.split())


@root_only
def test_who_is_not_root_is_told_so(prefix: Path, config: Path) -> None:
    cluster = cluster_file.load(config)
    node = Installation(cluster, config, "iceland", cluster.nodes["iceland"], prefix=prefix)
    os.seteuid(65534)
    try:
        with pytest.raises(LifecycleError, match=r"need root: sudo aurora-cli node install"):
            check(node)
    finally:
        os.seteuid(0)


def test_systemd_accepts_the_units_of_every_kind_of_node(install: Install, prefix: Path) -> None:
    analyze = program("systemd-analyze")
    for started in ("redis-server", "redis-sentinel"):  # systemd looks whether what a unit starts is there
        program(started)
    for name in ("aurora", "iceland"):
        install(name=name)
        written = sorted(str(path) for path in (prefix / "units").iterdir() if path.suffix in (".service", ".target"))
        assert len(written) in (3, 5)
        result = subprocess.run([analyze, "verify", *written], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")


def test_systemd_refuses_a_unit_that_is_wrong(install: Install, prefix: Path) -> None:
    install()
    unit = prefix / "units" / units.WORKER
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=sometimes"))
    result = subprocess.run([program("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "sometimes" in result.stderr


def test_compose_starts_the_chat_as_the_seed_writes_it(install: Install, prefix: Path) -> None:
    install()
    compose = program("docker-compose")
    environment = {"PATH": os.environ["PATH"], "COMPOSE_PROFILES": "chat"}
    result = subprocess.run([compose, "config"], cwd=prefix, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    chat = yaml.safe_load(result.stdout)["services"]["chat-backend"]
    assert chat["container_name"] == "aurora-chat-backend"
    assert chat["command"] in (
        "node start --join aurora --name iceland",
        ["node", "start", "--join", "aurora", "--name", "iceland"],
    )
    assert chat["network_mode"] == "host"
    assert chat["build"]["context"] == str(prefix)
    assert (prefix / chat["build"]["dockerfile"]).exists()
    assert chat["user"] == f"{os.geteuid()}:{os.getegid()}"


def test_compose_reads_the_file_of_the_checkout_too_with_gpus_and_every_profile() -> None:
    compose = program("docker-compose")
    files = [f"--file={PROJECT}/cluster/container/{name}" for name in ("compose.yaml", "compose.gpu.yaml")]
    profiles = [f"--profile={name}" for name in ("chat", "redis", "sentinel", "control-redis")]
    result = subprocess.run([compose, *files, *profiles, "config"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]
    assert set(services) == {"chat-backend", "redis", "sentinel", "control-redis"}
    assert services["chat-backend"]["build"]["context"] == str(PROJECT)
    assert services["chat-backend"]["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"
