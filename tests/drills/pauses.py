"""How long clients waited beyond the script's own rhythm, and which turns a fault really hit. Pure."""

from collections.abc import Collection
from itertools import pairwise

from serve_app.chat.events import Accepted, Piece, is_end
from tests.drills.reading import Reading
from tests.drills.seen import Asked, Device


def longest_pauses(asked: Asked) -> list[float]:
    """Return the longest pause of each device during this turn, in seconds; nothing where there was no answer.

    A pause is the time between two consecutive things that a reader sees (its own asking, `accepted`, a new piece, the end);
    where both are text, less the script's interval between two words. A REST client sees only its answer: its pause is the
    delay of that answer beyond the undisturbed duration.
    """
    interval = 1 / asked.words_per_second
    if asked.answer is not None and asked.ended_at is not None:
        return [max(0.0, asked.ended_at - asked.asked_at - (asked.words - 1) * interval)]
    found = []
    for number, device in enumerate(asked.devices):
        seen = [(asked.asked_at, False)] if number == 0 else []
        seen += _news(device)
        if not any(is_end(heard.event) for heard in device.heard) or len(seen) < 2:
            continue
        gaps = [later - before - (interval if text and more else 0.0) for (before, text), (later, more) in pairwise(seen)]
        found.append(max(0.0, *gaps))
    return found


def _news(device: Device) -> list[tuple[float, bool]]:
    """When a reader saw something new, and whether it was text; what comes again after a reconnection is no news."""
    found: list[tuple[float, bool]] = []
    last, accepted = 0, False
    for heard in device.heard:
        match heard.event:
            case Piece(seq=seq) if seq > last:
                last = seq
                found.append((heard.at, True))
            case Accepted() if not accepted:
                accepted = True
                found.append((heard.at, False))
            case event if is_end(event):
                found.append((heard.at, True))
    return found


def was_generating_on(asked: Asked, reading: Reading, nodes: Collection[str], at: float) -> bool:
    """Say whether at this time one of `nodes` was generating the turn, between its first piece and its end."""
    device = asked.devices[0]
    runs = [node for when, node in reading.runs if when <= at]
    return bool(runs) and runs[-1] in nodes and was_speaking(device, at)


def was_speaking(device: Device, at: float) -> bool:
    """Say whether this time lies between the turn's first piece and its end, as the device saw them."""
    pieces = [heard.at for heard in device.heard if heard.event.type == "piece"]
    ends = [heard.at for heard in device.heard if is_end(heard.event)]
    return bool(pieces) and pieces[0] <= at and (not ends or ends[0] > at)


def was_connected_to(device: Device, nodes: Collection[str], at: float) -> bool:
    """Say whether the device's latest connection at this time was with one of `nodes`."""
    doors = [link.door for link in device.links if link.opened_at <= at]
    return bool(doors) and doors[-1] in nodes
