"""One lab for all tests that want it, and nothing left of it whatever they do."""

import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from cluster.lab import Lab
from cluster.lab.up import bring_up, take_down, unfit
from cluster.progress import Progress
from tests.drills.stage import Stage
from tests.support.lab import client_network, remains, served_by, spaces

SETTLED_S = 150.0
"""By then a lab with a node that has just been started is whole, also on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those that want the lab come last: there is one per machine, and others here make one of their own."""
    items.sort(key=lambda item: "lab" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def fit() -> None:
    """This machine and this user can have a lab."""
    if reason := unfit():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def lab(fit: None) -> Iterator[Lab]:
    """Four nodes, up. Tests leave them as they like, and say by `whole` that they want all of them."""
    bring_up(Progress(Console()))
    made_of = spaces()
    try:
        with Lab() as lab:
            yield lab
    finally:
        take_down()
    assert remains(made_of) == []


@pytest.fixture
def among_clients(lab: Lab) -> Iterator[None]:
    """The sockets of this test are in the network of the lab's clients."""
    with client_network():
        yield


@pytest.fixture
def whole(lab: Lab, among_clients: None) -> None:
    """Every node is up and everything in its place, and every door is served by its own ingress.

    HAProxy sends to another one as long as it has not seen its own answer.
    """
    for node, state in lab.states().items():
        if state == "down":
            lab.start(node)
        elif state != "up":
            lab.heal(node)
    Stage(lab, print).wait_until_whole([node for node in lab.nodes if node != lab.cluster.head], SETTLED_S)
    deadline = time.monotonic() + SETTLED_S
    for node in lab.nodes:
        while (answers := served_by(lab.url(node))) != node:
            assert time.monotonic() < deadline, f"{node}'s door is served by {answers or 'nobody'}"
            time.sleep(0.1)
