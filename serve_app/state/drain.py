"""What operators have asked nodes to do, in Redis. Written by `aurora-cli node drain`."""

from serve_app.chat.drain import DrainStore
from serve_app.state.scripts import Scripts


class RedisDrains(DrainStore):
    """Looks in Redis, which every node shares."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def look(self, node: str, *, replica: str, in_hand: int) -> float | None:
        """See `DrainStore.look`. Tries once: the next second brings the next look."""
        left = await self._scripts.run("drain", node, replica, in_hand, patience_s=0)
        return None if left is None else int(left) / 1000
