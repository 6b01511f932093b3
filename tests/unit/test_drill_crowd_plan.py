"""The crowd of a drill: forty clients, spread evenly, the same from the same seed; and the scenes they find."""

from collections import Counter
from copy import deepcopy

from cluster import serve_config
from cluster.settings import PROJECT_ROOT
from tests.drills.crowd import CROWD, PLAN, plan
from tests.drills.faults import FAULTS
from tests.drills.seen import BALANCER
from tests.drills.stage import limited

URLS = {name: f"http://{name}:8000" for name in ("aurora", "star", "vengeance", "iceland")} | {BALANCER: "http://balancer:8080"}


def test_forty_clients_of_every_kind_are_spread_evenly_over_the_nodes_and_the_balancer() -> None:
    clients = plan(1, "repeatable", URLS).clients

    assert len(clients) == len({client.client_id for client in clients}) == 40
    assert {client.kind for client in clients} == set(CROWD)
    assert Counter(client.doors[0] for client in clients) == {
        BALANCER: 10, "aurora": 8, "star": 8, "vengeance": 7, "iceland": 7
    }  # fmt: skip
    assert sum(bool(client.second_doors) for client in clients) == 6


def test_a_second_device_is_at_another_node_and_who_goes_on_knows_all_nodes() -> None:
    for client in plan(1, "repeatable", URLS).clients:
        assert len(client.doors) == (1 if client.kind.through_balancer else 4)
        assert not client.second_doors or client.second_doors[0] != client.doors[0]


def test_the_same_seed_is_the_same_crowd_and_another_one_is_not() -> None:
    first, again, other = (plan(seed, "divergent", URLS) for seed in (1, 1, 2))

    assert first == again
    assert [client.message(0) for client in first.clients] == [client.message(0) for client in again.clients]
    assert [client.message(0).words for client in first.clients] != [client.message(0).words for client in other.clients]
    assert PLAN.validate_json(PLAN.dump_json(first)) == first


def test_first_answers_outlast_every_moment_at_which_a_fault_may_come() -> None:
    for seed in range(20):
        for client in plan(seed, "repeatable", URLS).clients:
            message = client.message(0)
            assert 14.5 <= message.words / message.words_per_second <= 30.5, "10 s until the fault, and 3 s to get there"


def test_no_message_is_asked_twice() -> None:
    clients = plan(1, "repeatable", URLS).clients
    texts = [client.message(number).text for client in clients for number in range(5)]

    assert len(set(texts)) == len(texts)


def test_a_scene_changes_how_many_replicas_of_inference_there_are_and_nothing_else() -> None:
    config = serve_config.render(PROJECT_ROOT / "configs" / "lab.yaml", host="0.0.0.0", port=8000)
    wanted = deepcopy(config)
    for application in wanted["applications"]:
        for deployment in application["deployments"]:
            if deployment["name"] == "Inference":
                deployment["autoscaling_config"]["min_replicas"] = deployment["autoscaling_config"]["max_replicas"] = 2

    assert wanted != config
    assert limited(config, 2) == wanted


def test_no_fault_takes_every_generating_node_away() -> None:
    for fault in FAULTS:
        assert fault.deed == "restart-each" or set(fault.generating) - set(fault.victims)
