"""A node that is to leave gives the Redis primary away first, and the chat goes on."""

import sys

import pytest

from cluster.lab import Lab, places
from cluster.settings import PROJECT_ROOT
from tests.support.lab import say

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("whole")
def test_a_drained_node_has_the_redis_primary_no_more_and_the_move_brings_it_back(lab: Lab) -> None:
    node = lab.redis_primary()
    kept = say(lab.url("aurora"), "Remember this", "mover")["conversation_id"]
    try:
        drained = command(lab, "node", "drain", node, "--timeout", "5")
        assert f"moves from {node} to " in drained
        assert f"{node} has nothing in hand any more" in drained
        assert lab.redis_primary() != node
    finally:
        assert "stays" in command(lab, "node", "drain", node, "--cancel")
    assert say(lab.url("aurora"), "And this", "mover", conversation_id=kept)["conversation_id"] == kept
    assert "Nothing was lost" in command(lab, "redis", "move", "--to", node)
    assert lab.redis_primary() == node
    assert say(lab.url("aurora"), "And this too", "mover", conversation_id=kept)["conversation_id"] == kept


def command(lab: Lab, *words: str) -> str:
    """Type `aurora-cli WORDS` among the lab's clients; return what it said."""
    typed = [sys.executable, "-m", "cluster", *words, "--config", str(places.CLUSTER)]
    done = lab.exec(places.CLIENTS, ["env", f"--chdir={PROJECT_ROOT}", *typed], timeout=120)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    return said
