"""Programs of the system that tests need."""

import os

import pytest

from cluster.failures import LifecycleError
from cluster.packages import ensure


def program(name: str) -> str:
    """The path of a program of the system. Root gets it installed, or a failure; others are told what to install."""
    try:
        return ensure(name)
    except LifecycleError as error:
        if os.geteuid() == 0:
            raise
        pytest.skip(str(error))
