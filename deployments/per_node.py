"""One replica per living node: what Serve's autoscaling is told instead of load.

Named in `configs/*.yaml` as `autoscaling_config.policy.policy_function`; together with `max_replicas_per_node: 1` a node that
joins serves without an edit of any file.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import ray
from ray.serve.config import AutoscalingContext

LOOK_EVERY_S = 1.0

Nodes = Callable[[], list[dict[str, Any]]]

log = logging.getLogger("ray.serve")


class OnePerNode:
    """Wants as many replicas as there are living nodes, of those that carry a label where one is given.

    The policy runs in Serve's controller, which must not wait, and asking for the nodes waits for as long as Ray's control
    store is away: so a thread asks, and the last number holds. It ends after this object, as each deployment makes a new one.
    """

    def __init__(self, label: str = "", value: str = "true", *, nodes: Nodes = ray.nodes) -> None:
        """Count what `nodes` returns; with a `label`, only nodes whose label has `value`."""
        self.label, self.value = label, value
        self.number: int | None = None
        """Of the nodes, when last counted; None before the first time."""
        threading.Thread(target=_keep_counting, args=(weakref.ref(self), nodes), name="aurora-nodes", daemon=True).start()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return how many replicas there should be, as Serve asks it of a policy; never waits."""
        return self.number or context.target_num_replicas, {}


def _keep_counting(policy: "weakref.ref[OnePerNode]", nodes: Nodes) -> None:
    pause = threading.Event()
    while True:
        try:
            found = nodes()
        except Exception:  # whatever it is, the nodes are still there; it is asked again
            log.warning("The nodes cannot be counted now; the last number holds.", exc_info=True)
            found = None
        if (counted := policy()) is None:
            return
        if found is not None:
            counted.number = count(found, counted.label, counted.value)
        del counted
        pause.wait(LOOK_EVERY_S)


def count(nodes: list[dict[str, Any]], label: str, value: str) -> int:
    """Return how many machines among Ray's `nodes` live and carry the label.

    A machine that died and is back counts once, though Ray may not yet have noticed that its earlier self is gone.
    """
    return len(
        {
            node["NodeManagerAddress"]
            for node in nodes
            if node["Alive"] and (not label or node.get("Labels", {}).get(label) == value)
        }
    )
