"""How Redis is named: `sentinel://` says where to ask, and for whom."""

import pytest

from serve_app.state.connection import connect
from serve_app.state.sentinel import Address, SentinelUrl

THREE = "sentinel://10.0.0.1:26379,10.0.0.3:26380,10.0.0.4/aurora"


def test_a_sentinel_url_names_the_sentinels_and_the_primary() -> None:
    found = SentinelUrl.parse(THREE)
    assert found.sentinels == (Address("10.0.0.1", 26379), Address("10.0.0.3", 26380), Address("10.0.0.4", 26379))
    assert (found.name, found.username, found.password, found.db) == ("aurora", None, None, 0)


def test_user_password_and_database_are_the_primary_s() -> None:
    found = SentinelUrl.parse("sentinel://ann:p%40ss:word@[::1]:26379,host.example/my%20chat?db=3")
    assert found.sentinels == (Address("::1", 26379), Address("host.example", 26379))
    assert (found.name, found.username, found.password, found.db) == ("my chat", "ann", "p@ss:word", 3)
    assert SentinelUrl.parse("sentinel://:secret@h/aurora").username is None


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://h:26379",
        "sentinel://h:26379/",
        "sentinel:///aurora",
        "sentinel://h:x/aurora",
        "sentinel://h,,i/aurora",
        "sentinel://h/aurora/0",
        "sentinel://h/aurora?db=x",
        "redis://h/aurora",
    ],
)
def test_what_is_no_sentinel_url_is_refused_with_how_to_write_one(url: str) -> None:
    with pytest.raises(ValueError, match=r"sentinel://HOST:26379,HOST:26379,HOST:26379/NAME"):
        SentinelUrl.parse(url)


@pytest.mark.parametrize("url", ["http://h", "sentinel://h", "h:6379"])
def test_what_is_no_redis_url_at_all_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ValueError, match="://"):
        connect(url)
