"""The chat's Redis as a person wants to see it: who is primary, who follows and how far behind, what the Sentinels think."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from pydantic import BaseModel, ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

OPEN_TURNS = "aurora:turns:open"
LAST_TAKEOVER = "aurora:takeover:last"
"""The two keys of the chat that are looked at; `serve_app/state/keys.py` is where they are made, a test compares."""

_CONNECT_S, _ANSWER_S = 1.0, 1.5


class RedisServer(BaseModel):
    """One Redis of the chat."""

    address: str
    state: str
    """`primary`, `replica`, or `down`."""
    version: str = ""
    linked: bool = True
    """Whether a replica hears its primary."""
    behind_bytes: int | None = None
    """How much a replica has yet to receive; unknown while no primary answers."""
    silent_seconds: int | None = None
    """How long ago a replica last heard its primary."""


class Sentinel(BaseModel):
    """One Sentinel, and which Redis it takes for the primary."""

    address: str
    state: str
    """`running` or `down`."""
    primary: str = ""


class LastTakeover(BaseModel):
    """The latest turn that went on with another replica."""

    at_ms: int
    turn_id: str
    pool: str
    attempt: int
    from_node: str
    to_node: str


class ChatRedis(BaseModel):
    """The chat's Redis, and what it says of the turns. Unknown values are None: no primary answers."""

    servers: list[RedisServer]
    sentinels: list[Sentinel]
    primary: str = ""
    """Whom Sentinels take for the primary and who is one; without Sentinels the only one that is; empty where nobody knows."""
    live_turns: int | None = None
    last_takeover: LastTakeover | None = None


@dataclass(frozen=True)
class Place:
    """Where the chat's Redis is, as its URL says."""

    servers: tuple[str, ...]
    sentinels: tuple[str, ...]
    master: str = ""
    username: str | None = None
    password: str | None = None
    db: int = 0


def place_of(url: str) -> Place:
    """Return what a `redis://` or `sentinel://` URL names.

    Raises:
        ValueError: it is neither.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "sentinel"):
        raise ValueError(f"{parts.scheme}:// is neither redis:// nor sentinel://")
    secret, _, hosts = parts.netloc.rpartition("@")
    username, _, password = secret.partition(":")
    path = parts.path.strip("/")
    return Place(
        servers=(_with_port(hosts, 6379),) if parts.scheme == "redis" else (),
        sentinels=tuple(_with_port(host, 26379) for host in hosts.split(",")) if parts.scheme == "sentinel" else (),
        master=path,
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=int(path) if path.isdecimal() else 0,
    )


def look(place: Place, also: Iterable[str], pool: Executor) -> ChatRedis:
    """Ask everybody at once: the servers and Sentinels of `place`, and the servers in `also` (HOST:PORT). Takes 8 s at most."""
    asked = list(pool.map(lambda address: _ask_sentinel(place, address), place.sentinels))
    sentinels = [sentinel for sentinel, _ in asked]
    known = {*place.servers, *also}.union(*(learnt for _, learnt in asked))
    infos = dict(zip(sorted(known), pool.map(lambda address: _info(place, address), sorted(known)), strict=True))
    primary = _primary(sentinels, infos)
    servers = [_server(address, info, infos.get(primary)) for address, info in infos.items()]
    seen = ChatRedis(servers=servers, sentinels=sentinels, primary=primary)
    if infos.get(primary):
        _read_turns(place, seen)
    return seen


def _with_port(host: str, port: int) -> str:
    return host if ":" in host else f"{host or '127.0.0.1'}:{port}"


def connect(address: str, *, username: str | None = None, password: str | None = None, db: int = 0) -> redis.Redis:
    """Return a client of the Redis at HOST:PORT that tries once and does not wait for long. Opens nothing yet."""
    host, _, port = address.rpartition(":")
    return redis.Redis(
        host=host,
        port=int(port),
        username=username,
        password=password,
        db=db,
        socket_connect_timeout=_CONNECT_S,
        socket_timeout=_ANSWER_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=True,
    )


def client_of(place: Place, address: str) -> redis.Redis:
    """Return a client of one of the chat's servers, as `connect` does."""
    return connect(address, username=place.username, password=place.password, db=place.db)


def _ask_sentinel(place: Place, address: str) -> tuple[Sentinel, set[str]]:
    """Return what a Sentinel thinks, and the servers it knows."""
    try:
        with connect(address) as client:  # user and password of the URL are the servers'
            primary = client.sentinel_get_master_addr_by_name(place.master)
            replicas = client.sentinel_slaves(place.master) if primary else []
    except redis.RedisError:
        return Sentinel(address=address, state="down"), set()
    if not primary:
        return Sentinel(address=address, state="running"), set()
    at = f"{primary[0]}:{primary[1]}"
    return Sentinel(address=address, state="running", primary=at), {at, *(f"{each['ip']}:{each['port']}" for each in replicas)}


def _info(place: Place, address: str) -> dict[str, Any] | None:
    try:
        with client_of(place, address) as client:
            pipe = client.pipeline(transaction=False)
            pipe.info("replication")
            pipe.info("server")
            replication, server = pipe.execute()
    except redis.RedisError:
        return None
    return {**server, **replication}


def _primary(sentinels: Sequence[Sentinel], infos: dict[str, dict[str, Any] | None]) -> str:
    claiming = [address for address, info in infos.items() if info and info["role"] == "master"]
    votes = [sentinel.primary for sentinel in sentinels if sentinel.primary]
    if votes:  # right after a failover not every Sentinel has heard of it
        return max(sorted(set(votes)), key=lambda address: (address in claiming, votes.count(address)))
    return claiming[0] if len(claiming) == 1 else ""


def _server(address: str, info: dict[str, Any] | None, primary: dict[str, Any] | None) -> RedisServer:
    if info is None:
        return RedisServer(address=address, state="down", linked=False)
    version = str(info["redis_version"])
    if info["role"] == "master":
        return RedisServer(address=address, state="primary", version=version)
    linked = info["master_link_status"] == "up"
    behind = max(0, primary["master_repl_offset"] - info["slave_repl_offset"]) if primary and linked else None
    silent = info["master_last_io_seconds_ago"] if linked else None
    return RedisServer(
        address=address, state="replica", version=version, linked=linked, behind_bytes=behind, silent_seconds=silent
    )


def _read_turns(place: Place, seen: ChatRedis) -> None:
    try:
        with client_of(place, seen.primary) as client:
            pipe = client.pipeline(transaction=False)
            pipe.zcard(OPEN_TURNS)
            pipe.get(LAST_TAKEOVER)
            live, last = pipe.execute()
        seen.live_turns = live
        seen.last_takeover = LastTakeover.model_validate(json.loads(last)) if last else None
    except (redis.RedisError, ValueError, ValidationError):
        return  # it went away between two questions, or another release wrote it: unknown
