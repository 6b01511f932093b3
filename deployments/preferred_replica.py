"""How Serve chooses a replica of a pool: the one that our router wants, else as it always does.

Which replica that is, is the business of `serve_app.chat.placing`; here it is only looked up, inside the handles of a router.

Expected: a deployment names its `request_router_class`. Actual (Serve 2.60, `ray/serve/_private/build_app.py`): the deployment at
the top of an application may not where HAProxy is on, as HAProxy chooses for what has a route; that a pool has none is not looked
at. The way around would be one more deployment on top of every pool, a process for nothing. So the handles of a router's process
are given the class here; `tests/cluster/test_pools.py` fails should a later Ray ask for it elsewhere.
"""

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

ARGUMENT = "prefer"
"""The argument of `Inference.run_turn` that names the replica wanted; empty: none."""


class PreferredReplica(LocalityMixin, RequestRouter):
    """Puts the replica wanted first, then those of this node, then the others; of each rank the one with the shortest queue.

    Each request gets the replica that was chosen for it; Serve's own router gives a free one to whichever request came first.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the candidates in ranks, best first; Serve takes the first that has room, and asks again if none has."""
        wanted = None
        if pending_request is not None:
            wanted = pending_request.kwargs.get(ARGUMENT)
            # Expected: who asks again after all were full waits a little. Actual (2.60): only where the context says so, which
            # Serve's own router sets in its locality helper; without it the loop never pauses.
            pending_request.routing_context.should_backoff = True
        first = [replica for replica in candidate_replicas if wanted and replica.replica_id.unique_id == wanted]
        near = self.rank_replicas_via_locality(candidate_replicas) if self._prefer_local_node_routing else [candidate_replicas]
        return [first, *near]


def use_in_this_process() -> None:
    """Have every handle that this process makes from now on choose so."""
    setattr(RequestRouterConfig, "get_request_router_class", lambda _: PreferredReplica)  # noqa: B010 - mypy refuses the assignment
