"""One replica per living node: what Serve's controller is told."""

import threading
import warnings
import weakref
from typing import Any

import pytest

from tests.support.waiting import until

with warnings.catch_warnings():  # Ray Serve itself uses what Pydantic has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.serve.config import AutoscalingContext

    from deployments.per_node import OnePerNode, count


def node(address: str, *, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"NodeManagerAddress": address, "Alive": alive, "Labels": {f"aurora/{name}": value for name, value in labels.items()}}


FOUR = [node("1"), node("2", inference="true"), node("3", inference="true"), node("4", inference="false")]


def wanting(replicas: int) -> AutoscalingContext:
    """What Serve hands a policy, where now so many replicas are wanted."""
    context = object.__new__(AutoscalingContext)
    context.target_num_replicas = replicas
    return context


def test_living_machines_are_counted_once_and_by_label_only_those_that_carry_it() -> None:
    assert count(FOUR, "", "true") == 4
    assert count(FOUR, "aurora/inference", "true") == 2
    assert count([*FOUR, node("5", alive=False)], "", "true") == 4
    assert count([*FOUR, node("4", alive=True)], "", "true") == 4, "it died and is back, and Ray has not noticed the first"
    assert count([{"NodeManagerAddress": "1", "Alive": True}], "aurora/inference", "true") == 0


async def test_a_policy_follows_the_nodes_and_keeps_what_was_wanted_until_it_has_counted() -> None:
    nodes, may_look = list(FOUR), threading.Event()

    def look() -> list[dict[str, Any]]:
        may_look.wait(10)
        return nodes

    policy = OnePerNode(nodes=look)
    assert policy(wanting(7)) == (7, {})
    may_look.set()
    await until(lambda: policy(wanting(7)) == (4, {}))
    nodes.append(node("5"))
    await until(lambda: policy(wanting(7)) == (5, {}))


async def test_while_the_head_is_away_the_last_number_holds(caplog: pytest.LogCaptureFixture) -> None:
    there = threading.Event()
    there.set()

    def look() -> list[dict[str, Any]]:
        if not there.is_set():
            raise ConnectionError("no head")
        return FOUR

    policy = OnePerNode("aurora/inference", nodes=look)
    await until(lambda: policy(wanting(1)) == (2, {}))
    there.clear()
    await until(lambda: "cannot be counted" in caplog.text)
    assert policy(wanting(1)) == (2, {})


async def test_the_counting_ends_with_the_policy() -> None:
    policies = [OnePerNode(nodes=lambda: FOUR)]
    await until(lambda: policies[0].number == 4)
    counting = {thread for thread in threading.enumerate() if thread.name == "aurora-nodes"}
    there = weakref.ref(policies.pop())
    assert there() is None
    await until(lambda: not any(thread.is_alive() for thread in counting))
