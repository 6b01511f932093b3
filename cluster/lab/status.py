"""How the lab is: what any cluster shows of itself, and what only the lab knows of its machines."""

from collections import Counter
from functools import partial

from cluster import cluster_status
from cluster.cluster_status import ClusterStatus
from cluster.lab.lab import Lab


def look(lab: Lab) -> ClusterStatus:
    """Return how the lab is; a node that was frozen, partitioned or killed says so."""
    status = lab.call(partial(cluster_status.look, lab.cluster))
    states = lab.states()
    living = Counter((each.node, f"{each.application}/{each.deployment}") for each in lab.replicas())
    for node in status.nodes:
        if node.name not in states:
            continue
        if states[node.name] != "up":
            node.state = states[node.name]
        # As processes they are seen without the head, too, and as soon as they are gone.
        node.replicas = {name: count for (where, name), count in living.items() if where == node.name}
    return status
