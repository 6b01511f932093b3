"""The promises about a turn, by the way in which they can be broken."""

from enum import StrEnum


class Broken(StrEnum):
    """Which promise was broken."""

    LOST_PIECE = "lost piece"
    REPEATED_PIECE = "repeated piece with another text"
    SECOND_END = "second end, or something after the end"
    WRONG_RECEIPT = "wrong receipt"
    MIX = "mix of two texts"


class BrokenPromise(Exception):
    """The events of a turn contradict each other or their receipt; `what` names how."""

    def __init__(self, what: Broken, detail: str = "", *, turn_id: str = "") -> None:
        """Keep the kind, a detail for people, and the turn concerned."""
        super().__init__(what, detail)
        self.what = what
        self.turn_id = turn_id

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.turn_id or 'A turn'}: {self.args[0].value}: {self.args[1]}"
