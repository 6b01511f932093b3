"""What `aurora-cli lab kill` understands. The lab itself is a stand-in: one may be running on this machine."""

import pytest
from typer.testing import CliRunner

from cluster.lab import cli


class StandIn:
    """Takes the place of the lab: nothing is killed, and it is noted what would have been."""

    def __init__(self) -> None:
        self.killed: list[tuple[str, bool]] = []

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def kill(self, target: str, *, hold: bool = False) -> str:
        self.killed.append((target, hold))
        return target


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(cli, "Lab", lambda: stand_in)
    return stand_in


@pytest.mark.parametrize(
    ("words", "killed"),
    [
        (["star"], ("star", False)),
        (["redis-primary"], ("redis-primary", False)),
        (["redis-primary", "--hold"], ("redis-primary", True)),
        (["redis-control"], ("redis-control", False)),
        (["replica", "chat/Ingress@star"], ("chat/Ingress@star", False)),
        (["chat/Ingress@star"], ("chat/Ingress@star", False)),
    ],
)
def test_a_node_a_redis_or_a_replica_is_killed_with_or_without_the_word_replica(
    lab: StandIn, words: list[str], killed: tuple[str, bool]
) -> None:
    result = CliRunner().invoke(cli.app, ["kill", *words])
    assert result.exit_code == 0, result.output
    assert lab.killed == [killed]
    assert result.stdout == f"Killed: {killed[0]}.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["star", "iceland"], "'iceland' is too much"),
        (["star", "chat/Ingress@star"], "'chat/Ingress@star' is too much"),
        (["chat/Ingress@star", "star"], "'star' is too much"),
        (["replica"], "replica wants APP/DEPLOYMENT@NODE"),
        (["replica", "star"], "replica wants APP/DEPLOYMENT@NODE"),
        (["replica", "redis-primary"], "replica wants APP/DEPLOYMENT@NODE"),
        (["replica", "chat/Ingress"], "replica wants APP/DEPLOYMENT@NODE"),
    ],
)
def test_a_word_too_many_or_one_that_names_no_replica_is_refused_in_one_line_and_nothing_is_killed(
    lab: StandIn, words: list[str], said: str
) -> None:
    result = CliRunner().invoke(cli.app, ["kill", *words])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert said in line
    assert lab.killed == []


def test_a_third_word_is_an_error_of_use(lab: StandIn) -> None:
    result = CliRunner().invoke(cli.app, ["kill", "replica", "chat/Ingress@star", "iceland"])
    assert result.exit_code == 2
    assert "iceland" in result.stderr
    assert lab.killed == []
