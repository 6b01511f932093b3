"""The Redis side of a replica, made once per replica."""

from dataclasses import dataclass

from serve_app.settings import Settings
from serve_app.state.connection import Redis, connect
from serve_app.state.scripts import Scripts
from serve_app.state.turns import RedisTurns


@dataclass(frozen=True)
class Store:
    """A client, its scripts and the turns in it."""

    redis: Redis
    scripts: Scripts
    turns: RedisTurns


def open_store(settings: Settings) -> Store:
    """Return the store that `settings` names. Connects with the first command."""
    redis = connect(settings.redis_url.get_secret_value())
    scripts = Scripts(redis)
    return Store(redis, scripts, RedisTurns(scripts))
