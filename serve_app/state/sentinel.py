"""Asking Redis Sentinels which server is the primary now.

Every answer is a hint, not a fact: a Sentinel may be behind, cut off, or wrong. Whoever connects there still asks the
server itself (`serve_app.state.primary`).
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

ANSWER_WITHIN_S = 0.4
"""How long a Sentinel may take. They are asked all at once, so a frozen one costs nothing while most of them answer."""
LATECOMERS_S = 0.02
"""How long the others are waited for once most have answered: right after a failover a single one may know more."""
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return HOST:PORT."""
        return f"{self.host}:{self.port}"


class SentinelUrl(NamedTuple):
    """What a `sentinel://` URL says. User, password and database are the primary's."""

    sentinels: tuple[Address, ...]
    name: str
    username: str | None
    password: str | None
    db: int

    @classmethod
    def parse(cls, url: str) -> "SentinelUrl":
        """Return what `url` says: `sentinel://[user:password@]HOST:PORT,HOST:PORT,…/NAME[?db=N]`; the port may be left out.

        Raises:
            ValueError: it is not of that form.
        """
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        found = [_HOST.fullmatch(host) for host in hosts.split(",")]
        name, db = unquote(parts.path).strip("/"), parse_qs(parts.query).get("db", ["0"])[0]
        if parts.scheme != "sentinel" or not all(found) or not name or "/" in name or not db.isdigit():
            raise ValueError("Write sentinel://HOST:26379,HOST:26379,HOST:26379/NAME, with the primary's name at the Sentinels.")
        sentinels = tuple(Address(match[1].strip("[]"), int(match[2] or 26379)) for match in found if match)
        return cls(sentinels, name, unquote(username) or None, unquote(password) or None, int(db))


class _Answer(NamedTuple):
    epoch: int
    address: Address


class Sentinels:
    """The Sentinels that watch one primary."""

    def __init__(self, addresses: Sequence[Address], name: str) -> None:
        """Ask those at `addresses` for the primary called `name`."""
        self._addresses = tuple(addresses)
        self._name = name
        self._asking: asyncio.Task[list[Address]] | None = None

    async def candidates(self) -> list[Address]:
        """Return what may be the primary, the likeliest first: the newest configuration, then whom most Sentinels name.

        Whoever asks while the Sentinels are being asked gets the same answer: many connections break at once.

        Raises:
            ConnectionError: no Sentinel names one.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all())
        found = await asyncio.shield(self._asking)
        if not found:
            raise RedisConnectionError(f"None of {len(self._addresses)} Sentinels names a primary called {self._name!r}.")
        return found

    async def _ask_all(self) -> list[Address]:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self._ask(address)) for address in self._addresses]
        answers: list[_Answer] = []
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S) as limit:
                for done in asyncio.as_completed(tasks):
                    answer = await done
                    if answer is not None:
                        answers.append(answer)
                        if len(answers) == len(tasks) // 2 + 1:
                            limit.reschedule(loop.time() + LATECOMERS_S)
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        votes = Counter(answer.address for answer in answers)
        newest = {address: max(a.epoch for a in answers if a.address == address) for address in votes}
        return sorted(votes, key=lambda address: (newest[address], votes[address]), reverse=True)

    async def _ask(self, address: Address) -> _Answer | None:
        """Return what one Sentinel says, or None if it says nothing of use."""
        host, port = address
        limit = ANSWER_WITHIN_S
        connection = Connection(
            host=host, port=port, protocol=2, driver_info=None, socket_timeout=limit, socket_connect_timeout=limit
        )
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            named = await connection.read_response()
            await connection.send_command("SENTINEL", "MASTER", self._name)
            state = await connection.read_response()
            facts = dict(zip(state[::2], state[1::2], strict=True))
            # The first answer names the new primary from its promotion on, the second only once everything is reconfigured;
            # but the configuration's epoch, which orders the answers of several Sentinels, stands in the second.
            return _Answer(int(facts[b"config-epoch"]), Address(named[0].decode(), int(named[1])))
        except (RedisError, OSError, LookupError, ValueError, TypeError):
            return None  # dead, frozen, no Sentinel, or does not know the name: the others decide
        finally:
            await connection.disconnect()
