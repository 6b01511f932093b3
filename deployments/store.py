"""The Redis side of a replica, made once per replica."""

from dataclasses import dataclass

from serve_app.chat.meter import Meter
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


def open_store(settings: Settings, meter: Meter) -> Store:
    """Return the store that `settings` names. Connects with the first command."""
    replicas = settings.durability_replicas
    redis = connect(settings.redis_url.get_secret_value(), replicas=replicas)
    scripts = Scripts(redis, replicas=replicas, meter=meter)
    return Store(redis, scripts, RedisTurns(scripts))
