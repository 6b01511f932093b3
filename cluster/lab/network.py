"""The lab's network: a namespace per node and one for clients, each with a cable to a switch in a namespace of its own.

The machine's own network is not touched, and no namespace has a way out. Addresses are resolved by fixed entries, so that a
node whose packets vanish sees silence, as over a real switch, and no error of its own kernel.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.failures import LifecycleError
from cluster.lab.places import PREFIX, SWITCH
from cluster.packages import ensure

NAMESPACES = Path("/run/netns")


def path(name: str) -> Path:
    """Return the file by which a namespace of the lab is entered."""
    return NAMESPACES / f"{PREFIX}{name}"


def existing() -> list[str]:
    """Return the names of the lab's namespaces that are there."""
    return sorted(entry.name.removeprefix(PREFIX) for entry in NAMESPACES.glob(f"{PREFIX}*"))


def build(addresses: Mapping[str, str]) -> None:
    """Make a namespace for each name, with that address, and the switch between them."""
    for name in (SWITCH, *addresses):
        _ip("netns", "add", PREFIX + name)
    _in(SWITCH, "link add bridge type bridge", "link set bridge up", "link set lo up")
    for name in addresses:
        _connect(name, addresses)


def extend(name: str, addresses: Mapping[str, str]) -> None:
    """Make the namespace for one more of `addresses`; the others are there."""
    _ip("netns", "add", PREFIX + name)
    _connect(name, addresses)
    for other in addresses:
        if other != name:
            _in(other, f"neigh replace {_neighbour(addresses[name])}")


def remove() -> None:
    """Remove all of the lab's namespaces, and with them its cables; their processes must have ended."""
    for name in existing():
        _ip("netns", "delete", PREFIX + name)


def unplug(node: str) -> None:
    """Let packets to and from a node vanish; the node's own end of the cable stays up."""
    _in(SWITCH, f"link set port-{node} nomaster")


def plug(node: str) -> None:
    """Undo `unplug`."""
    _in(SWITCH, f"link set port-{node} master bridge")


def unplugged() -> set[str]:
    """Return the nodes whose packets vanish."""
    links: list[dict[str, Any]] = json.loads(_ip("-json", "-netns", PREFIX + SWITCH, "link", "show", "type", "veth"))
    return {link["ifname"].removeprefix("port-") for link in links if "master" not in link}


def _connect(name: str, addresses: Mapping[str, str]) -> None:
    port, address = f"port-{name}", addresses[name]
    _in(
        SWITCH,
        f"link add {port} type veth peer name eth0 address {_mac(address)} netns {PREFIX}{name}",
        f"link set {port} master bridge up",
    )
    neighbours = (f"neigh add {_neighbour(each)}" for each in addresses.values() if each != address)
    _in(name, "link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up", *neighbours)


def _neighbour(address: str) -> str:
    return f"{address} lladdr {_mac(address)} dev eth0"


def _mac(address: str) -> str:
    return f"02:00:{':'.join(f'{int(part):02x}' for part in address.split('.'))}"


def _in(namespace: str, *commands: str) -> None:
    _ip("-netns", PREFIX + namespace, "-batch", "-", given="\n".join(commands))


def _ip(*arguments: str, given: str | None = None) -> str:
    command: Sequence[str] = (ensure("ip"), *arguments)
    result = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=30)
    if result.returncode != 0:
        complaint = (result.stderr.strip().splitlines() or ["without a word"])[0]
        raise LifecycleError(f"The lab's network cannot be made or changed: ip {' '.join(arguments)}: {complaint}")
    return result.stdout
