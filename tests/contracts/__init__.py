"""Promises of the ports, written once and held against every implementation."""

import pytest

# The promises live in a module that is no test itself; without this its asserts would say nothing when they fail.
pytest.register_assert_rewrite("tests.contracts.engine_contract")
