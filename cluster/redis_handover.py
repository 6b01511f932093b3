"""Handing the part of the primary of the chat's Redis to a replica while messages go on, so that nothing acknowledged is lost.

`SENTINEL FAILOVER` alone loses some: the old primary takes writes while a replica is promoted, and what only another replica has
confirmed is dropped. `CLIENT PAUSE … WRITE` around it holds back the Sentinels' own PUBLISH too, so they soon take the primary
for dead and promote another one. Redis's own `FAILOVER` hands over rightly: writes wait, the replica gets the rest, and the two
change roles at one place in the stream of writes; but Sentinels make nothing of it for 20 s. So the one follows the other:
`FAILOVER`, then `SENTINEL FAILOVER` to the one that is the primary already. In between nobody names it, so nobody writes to it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import redis

from cluster import redis_status
from cluster.failures import LifecycleError
from cluster.redis_status import Place

_CATCH_UP, _CHANGE_ROLES = 0.8, 0.9
"""By when the replica is to have caught up, and to be the primary, in parts of the Sentinels' `down-after`; else writes go on.

A replica says once a second how far it is. But while writes wait, so do the Sentinels' hellos, and a primary that takes none for
`down-after` counts as down: so rather a few times than for longer."""
_TIMES, _BETWEEN_S = 5, 0.45
_PREFERRED, _USUAL = 1, 100
"""`replica-priority`: Sentinels promote the lowest first; all have Redis's own, so that the one with most is promoted."""
_LOOK_MS, _USUAL_LOOK_MS = 1_000, 10_000
"""How often a Sentinel asks a server how it is: while a primary is moved, and by itself.

Should we die halfway, they notice so much sooner that their primary has become a replica, and promote one."""
_WITHIN_S = 30.0
_ASK_NEXT_S = 2.5
"""Longer than a Sentinel takes that does as it was asked: it asks the promoted server how it is once a second."""
_POLL_S = 0.02

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Handover:
    """One that can be done now. Addresses are HOST:PORT; `name` says one in a person's words."""

    place: Place
    old: str
    new: str
    sentinels: tuple[str, ...]
    name: Callable[[str], str] = str

    def carry_out(self, tell: Tell) -> float:
        """Do it; `tell` hears how far it is. Returns when every Sentinel names the new primary and the old one follows it.

        Should this process die halfway, writes go on by themselves: after a second, or when the Sentinels have promoted one.

        Returns:
            How many seconds writes waited at most: from asking the old primary until a Sentinel named the new one.

        Raises:
            LifecycleError: it was not done, or not to the end; says what is so now. Nothing acknowledged is lost in any case.
        """
        with self._preferred(tell):
            tell("writes wait until it has everything")
            with ThreadPoolExecutor(1) as pool:  # of its own, so that Ctrl-C finds it done or not begun, never half done
                waited_s = pool.submit(self._change_primary).result()
        tell("writes go on; the others follow")
        _until(
            self._is_followed,
            f"{self.name(self.new)} is the primary and writes go on, but after {_WITHIN_S:.0f} s not every Sentinel names it "
            f"or {self.name(self.old)} does not follow it: aurora-cli status shows which.",
        )
        return waited_s

    @contextmanager
    def _preferred(self, tell: Tell) -> Iterator[None]:
        """Within the block, the Sentinels would promote this very replica."""
        with self._plainly("nothing was moved"):
            usual = usual_priority(self.place, self.new)
        try:
            with self._plainly("nothing was moved"):
                _set_priority(self.place, self.new, _PREFERRED)
            self._look_every(_LOOK_MS)
            tell("the Sentinels look at the replicas")
            _until(
                lambda: all(map(self._is_preferred_by, self.sentinels)),
                f"Not every Sentinel sees after {_WITHIN_S:.0f} s that {self.name(self.new)} is to be promoted: "
                "nothing was moved. Try again; if it stays so, restart that Sentinel.",
            )
            yield
        finally:
            self._look_every(_USUAL_LOOK_MS)
            with suppress(redis.RedisError):  # who cannot be reached now is put right by the next one
                _set_priority(self.place, self.new, usual)

    def _look_every(self, ms: int) -> None:
        for sentinel in self.sentinels:
            with suppress(redis.RedisError), redis_status.connect(sentinel) as client:  # without it, it takes them ten seconds
                client.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", ms)

    def _is_preferred_by(self, sentinel: str) -> bool:
        try:
            with redis_status.connect(sentinel) as client:
                known = {f"{each['ip']}:{each['port']}": each for each in client.sentinel_slaves(self.place.master)}
        except redis.RedisError:
            return False
        preferred = [address for address, each in known.items() if int(each["slave-priority"]) == _PREFERRED]
        fit = known.get(self.new, {"flags": "unknown"})
        return preferred == [self.new] and fit["flags"] == "slave" and fit["master-link-status"] == "ok"

    def _change_primary(self) -> float:
        since = time.monotonic()
        self._change_roles()
        turn, ask_at = cycle(self.sentinels), 0.0

        def named() -> bool:
            nonlocal ask_at
            if any(self._named_by(sentinel) == self.new for sentinel in self.sentinels):
                return True
            if time.monotonic() > ask_at and self._asked(next(turn)):
                ask_at = time.monotonic() + _ASK_NEXT_S
            return False

        _until(
            named,
            f"{self.name(self.new)} has everything and is the primary, but no Sentinel did as asked within {_WITHIN_S:.0f} s: "
            "nothing is lost, and writes wait until they promote one (aurora-cli status).",
        )
        return time.monotonic() - since

    def _change_roles(self) -> None:
        """Have both change roles at one place in the stream of writes, or neither."""
        down_after_s = self._down_after_s()
        for _ in range(_TIMES):
            if self._have_changed_roles(down_after_s):
                break
            time.sleep(_BETWEEN_S)  # to let through what has waited
        else:
            raise LifecycleError(
                f"{self.name(self.new)} did not catch up, {_TIMES} times within {down_after_s * _CATCH_UP:.1f} s: "
                "nothing was moved, writes go on. Try again when there is less to do."
            )
        with suppress(redis.RedisError):  # as Sentinels do: who reads on at the old one would not see what is written
            self._tell(self.old, ("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "KILL", "TYPE", "pubsub"))

    def _have_changed_roles(self, down_after_s: float) -> bool:
        """Try it once; false if it took too long, and nothing was changed."""
        host, _, port = self.new.rpartition(":")
        deadline = time.monotonic() + down_after_s * _CHANGE_ROLES
        answerless = suppress(redis.ConnectionError, redis.TimeoutError)  # it may have been heard all the same: look
        with self._plainly("nothing was moved, writes go on"), answerless:
            self._tell(self.old, ("FAILOVER", "TO", host, port, "TIMEOUT", int(down_after_s * _CATCH_UP * 1000)))
        while (done := self._is_handed_over()) is None:
            if time.monotonic() > deadline:
                with suppress(redis.RedisError):
                    self._tell(self.old, ("FAILOVER", "ABORT"))
                done = self._is_handed_over()
                break
            time.sleep(_POLL_S)
        if done is None:
            raise LifecycleError(
                f"{self.name(self.old)} went away meanwhile: nothing is lost, and the Sentinels decide which is the primary "
                "(aurora-cli status)."
            )
        return done

    def _is_handed_over(self) -> bool | None:
        """Whether the old primary is one no more; None while it is at it, or does not answer."""
        old = self._info(self.old)
        return old["role"] == "slave" if old.get("master_failover_state") == "no-failover" else None

    def _down_after_s(self) -> float:
        """Return after which silence the strictest Sentinel takes a server for down."""
        found = []
        with self._plainly("nothing was moved"):
            for sentinel in self.sentinels:
                with redis_status.connect(sentinel) as client:
                    found.append(int(client.sentinel_master(self.place.master)["down-after-milliseconds"]))
        return min(found) / 1000

    def _asked(self, sentinel: str) -> bool:
        """Ask a Sentinel to promote the one that is the primary; tell whether it is going to."""
        try:
            with redis_status.connect(sentinel) as client:
                if int(client.info("sentinel")["sentinel_tilt"]):  # its clock jumped or it stood still: for 30 s it only looks on
                    return False
                client.execute_command("SENTINEL", "FAILOVER", self.place.master)
        except redis.RedisError:  # it is gone, or at it, or sees no replica that is fit at this moment
            return False
        return True

    def _is_followed(self) -> bool:
        """Whether every Sentinel has ended with it, and the old primary is in sync with the new one."""
        try:
            for sentinel in self.sentinels:
                with redis_status.connect(sentinel) as client:
                    master = client.sentinel_master(self.place.master)
                if (f"{master['ip']}:{master['port']}", master["flags"]) != (self.new, "master"):
                    return False
        except redis.RedisError:
            return False
        old = self._info(self.old)
        return (
            bool(old) and f"{old.get('master_host')}:{old.get('master_port')}" == self.new and old["master_link_status"] == "up"
        )

    def _named_by(self, sentinel: str) -> str:
        try:
            with redis_status.connect(sentinel) as client:
                named = client.sentinel_get_master_addr_by_name(self.place.master)
        except redis.RedisError:
            return ""
        return f"{named[0]}:{named[1]}" if named else ""

    def _tell(self, address: str, *commands: tuple[str | int, ...]) -> None:
        with redis_status.client_of(self.place, address) as client, client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            pipe.execute()

    def _info(self, address: str) -> dict[str, Any]:
        try:
            with redis_status.client_of(self.place, address) as client:
                return dict(client.info("replication"))
        except redis.RedisError:
            return {}

    @contextmanager
    def _plainly(self, so: str) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise LifecycleError(
                f"Redis on {self.name(self.old)} or {self.name(self.new)}, or a Sentinel, refuses ({error}): {so}."
            ) from error


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise LifecycleError(otherwise)
        time.sleep(_POLL_S)


def usual_priority(place: Place, address: str) -> int:
    """Return a server's `replica-priority`, and put it right first where a handover that was cut off has left its own.

    Raises:
        redis.RedisError: it refuses, or does not answer.
    """
    with redis_status.client_of(place, address) as client:
        priority = int(client.config_get("replica-priority")["replica-priority"])
    if priority != _PREFERRED:
        return priority
    _set_priority(place, address, _USUAL)
    return _USUAL


def _set_priority(place: Place, address: str, priority: int) -> None:
    """Set it, and in the file too: Sentinels have a server write its file when they promote it."""
    with redis_status.client_of(place, address) as client:
        client.config_set("replica-priority", priority)
        with suppress(redis.ResponseError):  # it was started without a file
            client.config_rewrite()
