"""Where everything of the lab is. There is one lab per machine: its names are the machine's."""

import json
from pathlib import Path

HOME = Path("/run/aurora-lab")
"""Folder of the lab; each node's folder in it outlives the node's death, as a disk would."""

CLUSTER = Path(__file__).with_name("cluster.yaml")

PREFIX = "aurora-lab-"
"""What the names of all network namespaces of the lab begin with."""

CLIENTS = "clients"
CLIENTS_ADDRESS = "198.18.0.10"
SWITCH = "switch"
SPARE_ADDRESSES = tuple(f"198.18.0.{number}" for number in range(5, 10))
"""For machines that join though the cluster file does not name them."""

_NEWCOMERS = HOME / "newcomers.json"


def folder(node: str) -> Path:
    """Return a node's folder."""
    return HOME / node


def ray_home(node: str) -> Path:
    """Return what `AURORA_HOME` is on a node."""
    return folder(node) / "aurora"


def newcomers() -> dict[str, str]:
    """Return the addresses of the machines that joined though the cluster file does not name them, by name."""
    addresses: dict[str, str] = json.loads(_NEWCOMERS.read_text()) if _NEWCOMERS.exists() else {}
    return addresses


def note_newcomer(name: str, address: str) -> None:
    """Remember such a machine."""
    _NEWCOMERS.write_text(json.dumps({**newcomers(), name: address}))
