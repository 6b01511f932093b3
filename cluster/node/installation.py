"""What is installed on a machine that becomes a node: the facts of it, which the steps of `install.py` work from."""

import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path

from cluster import redis_conf, units
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.node import project_copy, python_environment
from cluster.settings import PROJECT_ROOT

HOME = ".aurora"
"""Folder, below the prefix, of what outlives a run of the node."""


@dataclass
class Installation:
    """One node's installation, and what came up on the way that a person should know (`remarks`)."""

    cluster: ClusterFile
    config: Path
    """The file that `cluster` was read from."""
    name: str
    node: NodeSpec
    prefix: Path = units.PREFIX
    systemd: bool = True
    """Whether to install for systemd, with a user of its own; else nothing outside `prefix` is touched."""
    remarks: list[str] = field(default_factory=list)

    @property
    def is_head(self) -> bool:
        """Whether the node is the head."""
        return self.name == self.cluster.head

    @property
    def joins(self) -> bool:
        """Whether the node joins without being in the cluster file."""
        return self.name not in self.cluster.nodes

    @property
    def start_options(self) -> str:
        """The options of `aurora-cli node start` on this node."""
        labels = [f"--label {key}={value}" for key, value in self.node.labels.items()] if self.joins else []
        role = "--head" if self.is_head else f"--join {self.cluster.head}"
        return " ".join([role, f"--name {self.name}", *labels])

    @property
    def how_to_start(self) -> str:
        """The command that starts what is installed."""
        return f"systemctl start {units.TARGET}" if self.systemd else f"{self.command} node start {self.start_options}"

    @property
    def python(self) -> Path:
        """The node's own Python."""
        return self.prefix / python_environment.FOLDER / "bin" / "python"

    @property
    def command(self) -> Path:
        """The node's own `aurora-cli`."""
        return self.python.with_name("aurora-cli")

    @property
    def unit_names(self) -> list[str]:
        """The systemd units of the node."""
        return units.of_node(self.node, is_head=self.is_head)

    @property
    def redis_files(self) -> dict[Path, str]:
        """The configurations of the Redis processes that belong on the node, as they are at the very first."""
        return redis_conf.configurations(self.cluster, self.node, self.prefix)

    @property
    def owner(self) -> tuple[int, int]:
        """User and group as which the node runs."""
        if not self.systemd:
            return os.geteuid(), os.getegid()
        user = pwd.getpwnam(units.USER)
        return user.pw_uid, user.pw_gid


def default_config(prefix: Path) -> Path:
    """Return the cluster file to install with where none is named: the one already there, else the project's."""
    installed = prefix / project_copy.CLUSTER_FILE
    return installed if installed.exists() else PROJECT_ROOT / project_copy.CLUSTER_FILE
