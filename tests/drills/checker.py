"""Was every answer right? Compares what clients saw with the undisturbed text and with what two nodes have stored. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serve_app.chat.messages import Message, Role
from tests.drills.reading import Reading, read
from tests.drills.seen import Asked, Device
from tests.support.divergent import stretch_breaches, stretches_of, text_breaches

Histories = Mapping[str, Sequence[Message]]
"""All messages of one client, oldest first, by the node that was asked for them."""


@dataclass
class Verdict:
    """What became of one message."""

    asked: Asked
    readings: list[Reading]
    kept: bool = False
    """The message is in the history."""
    complete: bool = False
    """The client that asked has the whole answer, to the letter, and every device of it has."""
    complete_in_store: bool = False
    """The whole answer is stored; the client had given up."""
    ends: int = 0
    """How many different ends there were, over all devices, the answer and what is stored."""
    acknowledged_lost: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Pieces that a device should have got and did not."""
        return sum(reading.lost for reading in self.readings)

    @property
    def repeated(self) -> int:
        """Pieces that a device got twice over one connection."""
        return sum(reading.repeated for reading in self.readings)

    @property
    def taken_back(self) -> int:
        """Pieces that were taken back by a rewind."""
        return sum(reading.taken_back for reading in self.readings)


def judge(asked: Asked, undisturbed: str, histories: Histories) -> Verdict:
    """Return what became of `asked`, whose right answer is `undisturbed`, given the histories on at least two nodes."""
    verdict = Verdict(asked, [read(device) for device in asked.devices])
    problems = verdict.problems
    for number, reading in enumerate(verdict.readings, 1):
        problems += [f"device {number}: {problem}" for problem in reading.problems]
        if reading.ends and reading.ends[0].type != "done":
            problems.append(f"device {number}: ended as {reading.ends[0].type}")

    stored = _stored(verdict, histories)
    _ends(verdict, histories)
    text = _own_text(verdict)
    if text is not None:
        problems += _wrong(text, undisturbed, verdict)
        if stored is not None and stored != text:
            problems.append("the stored reply is not what the client has")
    elif stored is not None:
        problems += _wrong(stored, undisturbed, verdict)
    if verdict.kept and stored is None:
        problems.append("the message was kept, and never answered")
    if text is None and asked.retries:
        problems.append("a client that tries again had no answer")
    verdict.complete = text is not None and stored is not None and not problems
    verdict.complete_in_store = text is None and stored is not None and not problems
    return verdict


def _own_text(verdict: Verdict) -> str | None:
    """The whole reply as the client has it on every device; None if it has not."""
    asked = verdict.asked
    if asked.answer is not None:
        text = str(asked.answer["response"])
        if asked.answer["status"] != "done":
            verdict.problems.append(f"answered as {asked.answer['status']}")
        if hashlib.sha256(text.encode()).hexdigest() != asked.answer["receipt"]["sha256"]:
            verdict.problems.append("the receipt is not that of the answer")
        return text
    if not verdict.readings or not verdict.readings[0].ends:
        return None
    for number, reading in enumerate(verdict.readings[1:], 2):
        if not reading.ends:
            verdict.problems.append(f"device {number} never saw the end ({_account(asked, asked.devices[number - 1])})")
        elif reading.text != verdict.readings[0].text:
            verdict.problems.append(f"device {number} has another text than device 1")
    return verdict.readings[0].text


def _account(asked: Asked, device: Device) -> str:
    """Say when a device was connected and what it heard last, in seconds since the turn was asked for."""
    links = [
        f"{link.door} from {link.opened_at - asked.asked_at:.1f} s" + (f", lost: {link.lost}" if link.lost else "")
        for link in device.links
    ]
    heard = [f"heard last: {last.event.type} at {last.at - asked.asked_at:.1f} s" for last in device.heard[-1:]]
    return "; ".join([*links, *heard]) or "never connected"


def _stored(verdict: Verdict, histories: Histories) -> str | None:
    """The stored reply, the same on every node; None if there is none."""
    asked, problems = verdict.asked, verdict.problems
    views = []
    for node, messages in histories.items():
        sent = [m for m in messages if m.role == Role.USER and m.content == asked.message]
        if len(sent) > 1:
            problems.append(f"{node} has the message {len(sent)} times")
        turns = {m.turn_id for m in sent}
        views.append((len(sent), [m.content for m in messages if m.role == Role.ASSISTANT and m.turn_id in turns]))
    if any(view != views[0] for view in views[1:]):
        problems.append("two nodes tell different histories")
    count, replies = views[0]
    verdict.kept = count > 0
    verdict.acknowledged_lost = asked.acknowledged_at is not None and any(count == 0 for count, _ in views)
    if verdict.acknowledged_lost:
        problems.append("an acknowledged message is not in the history")
    if len(replies) > 1:
        problems.append(f"{len(replies)} replies are stored for one message")
    return replies[0] if replies else None


def _ends(verdict: Verdict, histories: Histories) -> None:
    """Count the different ends of the turn, wherever one shows."""
    asked = verdict.asked
    found: set[tuple[str, str]] = {(end.type, end.receipt.sha256) for reading in verdict.readings for end in reading.ends}
    if asked.answer is not None:
        found.add((asked.answer["status"], asked.answer["receipt"]["sha256"]))
    repeated = max((len(reading.ends) for reading in verdict.readings), default=0)
    for messages in histories.values():
        turns = {m.turn_id for m in messages if m.role == Role.USER and m.content == asked.message}
        replies = [m for m in messages if m.role == Role.ASSISTANT and m.turn_id in turns]
        found |= {(m.status or "done", hashlib.sha256(m.content.encode()).hexdigest()) for m in replies}
        repeated = max(repeated, len(replies))
    verdict.ends = max(len(found), repeated)
    if verdict.ends > 1:
        verdict.problems.append(f"the turn ended {verdict.ends} times")


def _wrong(text: str, undisturbed: str, verdict: Verdict) -> list[str]:
    """Say what is wrong with a whole reply."""
    if not verdict.asked.divergent:
        return [] if text == undisturbed else ["the text is not the undisturbed one"]
    found = text_breaches(text, undisturbed)
    for reading in verdict.readings:
        if reading.whole and reading.ends[0].recovered:
            found += stretch_breaches(stretches_of(reading.pieces[seq] for seq in sorted(reading.pieces)), reading.cuts)
    return found
