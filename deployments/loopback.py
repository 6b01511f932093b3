"""Keeps the inter-deployment port of a Serve replica on the loopback address.

Expected: a cluster that listens on 127.0.0.1 only does so with every port. Actual: Serve 2.60 opens one gRPC port per
replica on `[::]` (`ray/serve/_private/replica.py`, `_on_initialized`), and what arrives there is unpickled. There is no
setting for it. This module is imported with the deployments, before a replica opens that port; `aurora-cli up` looks at
the sockets afterwards and warns, should a later Ray do it differently.
"""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def keep_on_loopback() -> bool:
    """Make replicas of this process bind 127.0.0.1 instead of all addresses; say whether that was possible."""
    from ray.serve._private import replica

    original: Callable[[Any, str], int] | None = getattr(replica, "add_port_to_grpc_server", None)
    if original is None:
        log.warning("This Ray opens its replica ports differently; they may be open on all addresses.")
        return False
    if getattr(original, "_aurora", False):
        return True

    def bind(server: Any, address: str) -> int:
        return original(server, address.replace("[::]:", "127.0.0.1:"))

    bind._aurora = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = bind  # type: ignore[attr-defined]
    return True
