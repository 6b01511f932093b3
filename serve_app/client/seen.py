"""What a client went through: numbers for tests, drills and curious people."""

from collections import OrderedDict

REMEMBERED = 1_000


class Seen:
    """Counts what the client library got over by itself."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.failed_requests = 0
        """Requests and connections that failed, were refused for now, cut off, or given up for their silence."""
        self.moves = 0
        """How often another node became the one to ask."""
        self.longest_pause_s: OrderedDict[str, float] = OrderedDict()
        """For each of the latest turns: the longest wait for its next piece or its end, in seconds, from asking on."""

    def paused(self, turn_id: str, seconds: float) -> None:
        """Note that somebody waited so long for text of a turn."""
        self.longest_pause_s[turn_id] = max(seconds, self.longest_pause_s.get(turn_id, 0.0))
        self.longest_pause_s.move_to_end(turn_id)
        while len(self.longest_pause_s) > REMEMBERED:
            self.longest_pause_s.popitem(last=False)
