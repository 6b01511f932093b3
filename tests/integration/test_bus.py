"""The bus when nothing happens: silence is normal there, and must not look like death."""

import asyncio

from serve_app.state import bus as bus_module
from tests.support.stack import Stack


async def test_an_idle_bus_keeps_its_connection_and_stays_healthy(stack: Stack) -> None:
    connection = None
    async with asyncio.timeout(5):
        while connection is None:
            connection = stack.bus._connection
            await asyncio.sleep(0.01)
    pings = bus_module.DEAD_AFTER_S + 2 * bus_module.PING_EVERY_S
    await asyncio.sleep(pings)  # the passing of time is the subject here
    stack.bus.check()
    assert stack.bus._connection is connection
    async with stack.bus.listen("somebody"):
        await asyncio.sleep(pings)
        stack.bus.check()
        assert stack.bus._connection is connection
