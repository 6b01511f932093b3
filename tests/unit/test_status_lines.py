"""What `aurora-cli status` prints of a cluster: each fact of the status is in a line that a person understands."""

from cluster.cluster_status import ClusterStatus, DeploymentStatus, NodeStatus
from cluster.component import Component
from cluster.pool_status import PoolReplica
from cluster.redis_status import LAST_TAKEOVER, OPEN_TURNS, ChatRedis, LastTakeover, Place, RedisServer, Sentinel, place_of
from cluster.status_lines import lines
from serve_app.state import keys

NOW = 1_800_000_000.0
PRIMARY = "10.0.0.2:6379"


def status(**changes: object) -> ClusterStatus:
    facts: dict[str, object] = {
        "cluster": "test",
        "nodes": [
            NodeStatus(
                name="aurora",
                url="http://10.0.0.1:8000",
                state="running",
                latency_ms=3.2,
                head=True,
                replicas={"chat/Ingress": 1},
            ),
            NodeStatus(
                name="star", url="http://10.0.0.2:8000", state="down", note="does not answer", replicas={"scripted/Inference": 2}
            ),
        ],
        "head": "running",
        "deployments": [DeploymentStatus(name="chat/Ingress", state="healthy", running=1, wanted=2, others=["starting"])],
        "redis": ChatRedis(
            servers=[
                RedisServer(address=PRIMARY, state="primary", version="7.0.15"),
                RedisServer(address="10.0.0.3:6379", state="replica", behind_bytes=12, silent_seconds=1),
            ],
            sentinels=[Sentinel(address="10.0.0.1:26379", state="running", primary=PRIMARY)],
            primary=PRIMARY,
            live_turns=7,
            last_takeover=LastTakeover(
                at_ms=int(NOW * 1000) - 90_000, turn_id="t", pool="scripted", attempt=2, from_node="star", to_node="aurora"
            ),
        ),
        "control_redis": "running",
    }
    return ClusterStatus.model_validate({**facts, **changes})


def shown(**changes: object) -> dict[str, Component]:
    return {f"{line.name} {line.where}".strip(): line for line in lines(status(**changes), now=NOW)}


def changed_redis(**changes: object) -> ChatRedis:
    return status().redis.model_copy(update=changes)


def test_a_node_is_a_line_with_its_address_latency_and_replicas() -> None:
    line = shown()["chat-backend aurora (head) http://10.0.0.1:8000"]
    assert (line.state, line.note) == ("running", "3 ms, chat/Ingress")
    line = shown()["chat-backend star http://10.0.0.2:8000"]
    assert (line.state, line.note) == ("down", "does not answer, scripted/Inference × 2")


def test_a_deployment_says_how_many_replicas_run_and_what_the_others_do() -> None:
    line = shown()["chat/Ingress deployment"]
    assert (line.state, line.note) == ("healthy", "1/2 replicas (starting)")


def test_a_replica_of_a_pool_says_what_it_holds_and_how_busy_it_is() -> None:
    facts = {"engine": "ollama", "model": "llama3.2", "models": ["llama3.2", "qwen3"], "busy": 2, "slots": 4}
    line = shown(pools=[PoolReplica(pool="ollama", node="star", status="ready", **facts)])["pool ollama star"]
    assert (line.state, line.note) == ("running", "ollama, llama3.2, qwen3 loaded, 2 of 4 busy")


def test_a_replica_that_starts_says_how_far_it_is_or_what_it_waits_for() -> None:
    pulls = PoolReplica(
        pool="ollama", node="star", status="starting", engine="ollama", model="llama3.2", note="pulling llama3.2: 43 %"
    )
    away = PoolReplica(
        pool="pc", node="aurora", status="starting", engine="openai_compatible", model="m", note="http://10.0.0.9 is away."
    )
    found = shown(pools=[pulls, away])
    line = found["pool ollama star"]
    assert (line.state, line.note) == ("starting", "ollama, llama3.2 not loaded, 0 busy, pulling llama3.2: 43 %")
    line = found["pool pc aurora"]
    assert (line.state, line.note) == ("starting", "openai_compatible, m not loaded, 0 busy, http://10.0.0.9 is away.")


def test_a_head_that_is_away_is_said_together_with_that_the_chat_goes_on() -> None:
    line = shown(head="Ray's dashboard at http://10.0.0.1:8265 does not answer: refused.", deployments=[])["ray head"]
    assert line.state == "down"
    assert line.note == "Ray's dashboard at http://10.0.0.1:8265 does not answer: refused; the chat goes on without it"


def test_every_redis_says_its_part_and_how_far_behind_it_is() -> None:
    found = shown()
    assert found[f"redis star {PRIMARY}"].note == "primary"
    assert found["redis 10.0.0.3:6379"].note == "replica, 12 bytes behind, heard 1 s ago"


def test_a_replica_that_hears_nothing_is_failing() -> None:
    servers = [RedisServer(address="10.0.0.3:6379", state="replica", linked=False)]
    line = shown(redis=changed_redis(servers=servers))["redis 10.0.0.3:6379"]
    assert (line.state, line.note) == ("failing", "replica, hears nothing of its primary")


def test_two_primaries_are_told_apart_by_what_the_sentinels_say() -> None:
    servers = [*status().redis.servers, RedisServer(address="10.0.0.4:6379", state="primary")]
    line = shown(redis=changed_redis(servers=servers))["redis 10.0.0.4:6379"]
    assert line.note == "takes itself for the primary, and the Sentinels do not"


def test_sentinels_that_disagree_are_counted() -> None:
    three = [Sentinel(address=str(n), state="running", primary=PRIMARY if n < 2 else "10.0.0.3:6379") for n in range(3)]
    line = shown(redis=changed_redis(sentinels=three))[f"sentinels {PRIMARY}"]
    assert (line.state, line.note) == ("failing", f"2/3 say that {PRIMARY} is the primary")
    gone = [Sentinel(address="1", state="down")]
    assert shown(redis=changed_redis(sentinels=gone))[f"sentinels {PRIMARY}"].state == "down"


def test_the_turns_line_has_the_live_turns_and_the_last_takeover() -> None:
    line = shown()["turns"]
    assert (line.state, line.note) == ("7 live", "last takeover 90 s ago, pool scripted, from star to aurora")
    assert shown(redis=changed_redis(last_takeover=None))["turns"].note == "no takeover yet"
    assert shown(redis=changed_redis(live_turns=None))["turns"].state == "unknown"


def test_a_cluster_serves_where_a_node_answers_and_redis_has_a_primary() -> None:
    assert status().serves
    assert not status(redis=changed_redis(live_turns=None)).serves
    assert not status(nodes=[NodeStatus(name="star", url="http://10.0.0.2:8000", state="down")]).serves


def test_the_two_keys_that_are_looked_at_are_those_the_chat_writes() -> None:
    assert (OPEN_TURNS, LAST_TAKEOVER) == (keys.OPEN_TURNS, keys.LAST_TAKEOVER)


def test_a_redis_url_names_servers_or_sentinels() -> None:
    assert place_of("redis://10.0.0.2:6390/3") == Place(("10.0.0.2:6390",), (), "3", db=3)
    expected = Place((), ("10.0.0.1:26379", "10.0.0.2:7"), "aurora", username="ann", password="p@ss")
    assert place_of("sentinel://ann:p%40ss@10.0.0.1,10.0.0.2:7/aurora") == expected
