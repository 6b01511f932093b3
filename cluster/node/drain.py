"""Draining a node: asking its replicas to leave, and waiting until they have nothing in hand any more.

The asking is a key in the chat's Redis, at which every replica looks once a second; `serve_app/chat/drain.py` is what they make
of it. The key outlives this command, and ends by itself.
"""

import getpass
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import redis

from cluster import redis_status
from cluster.failures import LifecycleError

DRAIN, LEFT, NODE, NODES = "aurora:node:{}:drain", "aurora:node:{}:left", "aurora:node:{}", "aurora:nodes"
"""Keys of the chat; `serve_app/state/keys.py` is where they belong, a test compares."""
KEPT_S = 900
"""How long a node stays asked."""

_HEARD_S = 2.5
"""By then every replica has looked and said what it has in hand."""
_GOODBYES_S = 10.0
"""After the node's time is up: what moving the last answers and saying good-bye may take."""
_FRESH_MS = 5_000
"""Who has said nothing for so long is dead and has nothing in hand."""


class Drain:
    """A node that leaves, as its operator sees it."""

    def __init__(self, redis_url: str, node: str) -> None:
        """Speak of `node` through the chat's Redis."""
        self._place = redis_status.place_of(redis_url)
        self._node = node

    def others(self) -> list[str]:
        """Return the other nodes that serve and are to go on serving."""
        with self._primary() as client:
            names = [str(name) for name in client.zrange(NODES, 0, -1)]
            records = [client.get(NODE.format(name)) for name in names]
        said = {name: json.loads(record) for name, record in zip(names, records, strict=True) if record}
        return sorted(name for name, record in said.items() if name != self._node and record["status"] == "serving")

    def ask(self, timeout_s: float) -> float:
        """Ask the node to leave: what is live there may take `timeout_s` seconds, then it is moved.

        One that was asked before keeps the time it has. Returns how many seconds are left.
        """
        with self._primary() as client:
            now = client.time()
            now_ms = now[0] * 1000 + now[1] // 1000
            by = f"{getpass.getuser()}@{socket.gethostname()}"
            at = datetime.now(UTC).isoformat(timespec="seconds")
            asked = json.dumps({"until_ms": now_ms + int(timeout_s * 1000), "at": at, "by": by})
            if client.set(DRAIN.format(self._node), asked, ex=KEPT_S + int(timeout_s), nx=True):
                client.delete(LEFT.format(self._node))
            else:
                asked = str(client.get(DRAIN.format(self._node)) or asked)
        return float(json.loads(asked)["until_ms"] - now_ms) / 1000

    def cancel(self) -> bool:
        """Let the node stay; say whether it had been asked to leave."""
        with self._primary() as client:
            return bool(client.delete(DRAIN.format(self._node)))

    def left(self) -> Counter[str] | None:
        """Return what the node still has in hand, by deployment; None if it has said nothing."""
        with self._primary() as client:
            seconds, _ = client.time()
            said = client.hgetall(LEFT.format(self._node))
        found: Counter[str] = Counter()
        for replica, raw in said.items():
            report = json.loads(raw)
            if seconds * 1000 - report["at_ms"] < _FRESH_MS:
                found[str(replica).split()[0]] += report["in_hand"]
        return found if found else None

    @contextmanager
    def _primary(self) -> Iterator[redis.Redis]:
        with ThreadPoolExecutor(8) as pool:
            address = redis_status.look(self._place, (), pool).primary
        if not address:
            raise LifecycleError("No primary of the chat's Redis answers: aurora-cli status shows who is there.")
        place = self._place
        try:
            with redis_status.connect(address, username=place.username, password=place.password, db=place.db) as client:
                yield client
        except redis.RedisError as error:
            raise LifecycleError(f"The chat's Redis at {address} does not do it ({error}): try again.") from error


def begin(drain: Drain, node: str, *, timeout_s: float) -> float:
    """Ask `node` to leave; return how many seconds what is live there has left.

    Raises:
        LifecycleError: no other node serves, or Redis does not answer.
    """
    if not drain.others():
        raise LifecycleError(f"No other node serves, so the answers on {node} have nowhere to go: start another one first.")
    return drain.ask(timeout_s)


def lift(redis_url: str, node: str, *, say: Callable[[str], None]) -> None:
    """Let a node that starts serve again, should it have been asked to leave before; tries once."""
    try:
        Drain(redis_url, node).cancel()
    except LifecycleError as error:
        say(f"{error} If {node} was drained, it goes on leaving: aurora-cli node drain {node} --cancel.")


def wait(drain: Drain, node: str, *, timeout_s: float, tell: Callable[[str], None]) -> None:
    """Wait until a node that was asked has nothing in hand, telling what is left about twice a second.

    Raises:
        LifecycleError: something is left although its time has been up for a while.
    """
    begun = time.monotonic()
    while True:
        try:
            found = drain.left()
        except LifecycleError as error:  # a failover: the node goes on by itself
            found, said = Counter({"unknown": 1}), str(error)
        else:
            said = in_words(found)
        tell(said)
        passed = time.monotonic() - begun
        if passed > _HEARD_S and not (found and found.total()):
            return
        if passed > max(0.0, timeout_s) + _GOODBYES_S:
            raise LifecycleError(
                f"{node} still has in hand: {said}. Stopping it now cuts that; clients of ours resume on another node."
            )
        time.sleep(0.5)


def in_words(left: Counter[str] | None) -> str:
    """Return what is left for a person."""
    if left is None:
        return "nothing of the chat answers there"
    turns = left["Inference"] + left["PersonalityRouter"]
    return f"{turns} live turns, {left['Ingress']} connections and requests"
