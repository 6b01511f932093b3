"""What a deploy waits for: the chat, and one pool that can answer. A machine that is off holds nobody up; a mistake is said."""

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.deploying import AWAY_S, GRACE_S, QUIET_S, Late, wait
from cluster.failures import LifecycleError
from cluster.pool_status import PoolReplica
from cluster.serve_api import ServeAway

GPU_OPTIONS = {"num_gpus": 1, "label_selector": {"aurora/gpu": "true"}}
AWAY = "Ollama at http://10.0.0.9:11434 does not answer."
Picture = tuple[dict[str, Any], Sequence[PoolReplica]]


def pool(name: str, **inference: Any) -> dict[str, Any]:
    return {"name": name, "import_path": "deployments.app:pool", "deployments": [{"name": "Inference", **inference}]}


CONFIG = {"applications": [pool("gpu", ray_actor_options=GPU_OPTIONS), pool("ollama"), {"name": "chat", "import_path": "x:chat"}]}


def serve(*states: str, status: str = "", wanted: int | None = None, **facts: Any) -> dict[str, Any]:
    """An application as Serve shows it: its replicas in these states, r0, r1 …"""
    replicas = [
        {"replica_id": f"r{n}", "state": state.removesuffix("?"), "node_id": None if state.endswith("?") else "n"}
        for n, state in enumerate(states)
    ]
    running = all(state == "RUNNING" for state in states)
    deployment = {
        "status": "HEALTHY" if running else "UPDATING",
        "target_num_replicas": len(states) if wanted is None else wanted,
        "replicas": replicas,
        "message": "",
        "status_trigger": "CONFIG_UPDATE_COMPLETED",
        **facts,
    }
    return {"status": status or ("RUNNING" if running else "DEPLOYING"), "message": "", "deployments": {"Inference": deployment}}


def told(name: str, status: str, note: str = "", replica: str = "r0") -> PoolReplica:
    return PoolReplica(pool=name, replica=replica, node="star", status=status, note=note)


CHAT = serve("RUNNING")
GPU_OFF = serve("STARTING?")
READY = told("ollama", "ready")


class Serve:
    """Shows one picture after the other, a quarter of a second each; the last one for ever."""

    def __init__(self, *pictures: Picture | Exception) -> None:
        self.pictures = list(pictures)
        self.seconds = 0.0
        self.said: list[str] = []

    @property
    def now(self) -> Picture:
        picture = self.pictures[0]
        if isinstance(picture, Exception):
            raise picture
        return picture

    def details(self, *, timeout: float = 10.0) -> dict[str, Any]:
        return {"applications": self.now[0]}

    def pools(self) -> Sequence[PoolReplica]:
        return self.now[1]

    def pause(self, seconds: float) -> None:
        self.seconds += seconds
        if len(self.pictures) > 1:
            self.pictures.pop(0)

    def waited(self, config: dict[str, Any] = CONFIG) -> list[Late]:
        return wait(self, config, self.pools, on_change=self.said.append, now=lambda: self.seconds, pause=self.pause)


def fails(serving: Serve, config: dict[str, Any] = CONFIG) -> str:
    with pytest.raises(LifecycleError) as failed:
        serving.waited(config)
    return str(failed.value)


def test_where_all_are_there_nothing_is_waited_for() -> None:
    everything = {"chat": CHAT, "ollama": serve("RUNNING"), "gpu": serve("RUNNING")}
    serving = Serve((everything, [READY, told("gpu", "ready")]))
    assert serving.waited() == []
    assert serving.seconds == 0


def test_a_pool_whose_server_is_away_is_named_at_once_and_fails_nothing() -> None:
    applications = {"chat": CHAT, "ollama": serve("RUNNING"), "gpu": serve("RUNNING")}
    serving = Serve((applications, [told("ollama", "starting", AWAY), told("gpu", "ready")]))
    assert serving.waited() == [Late("ollama", able=False, note=AWAY)]
    assert serving.seconds == 0


def test_a_pool_that_is_on_no_node_is_given_some_seconds_and_named_with_what_it_asks_for() -> None:
    serving = Serve(({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": GPU_OFF}, [READY]))
    assert serving.waited() == [Late("gpu", able=False, note="on no node yet; it asks for 1 GPU, aurora/gpu=true")]
    assert GRACE_S <= serving.seconds < GRACE_S + 1


def test_a_pool_that_comes_within_these_seconds_is_not_named() -> None:
    before: Picture = ({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": serve("STARTING")}, [READY])
    after: Picture = ({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": serve("RUNNING")}, [READY, told("gpu", "ready")])
    serving = Serve(*[before] * 8, after)
    assert serving.waited() == []
    assert serving.seconds == 2


@pytest.mark.parametrize(("status", "trigger"), [("UNHEALTHY", "HEALTH_CHECK_FAILED"), ("DEPLOY_FAILED", "HEALTH_CHECK_FAILED")])
def test_a_pool_whose_replica_has_just_died_fails_nothing(status: str, trigger: str) -> None:
    died = serve("RUNNING", status=status, wanted=1)
    died["deployments"]["Inference"] |= {"status": status, "status_trigger": trigger, "message": "Health check failed:\n  gone"}
    serving = Serve(({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": died}, [READY, told("gpu", "failing", "gone")]))
    assert serving.waited() == [Late("gpu", able=False, note="gone")]


def test_while_the_first_pool_pulls_or_loads_it_is_waited_for_however_long_that_takes() -> None:
    loading = {"chat": CHAT, "ollama": serve("STARTING"), "gpu": GPU_OFF}
    pulls: list[Picture] = [(loading, [told("ollama", "starting", f"pulling llama3.2: {n} %")]) for n in range(100)]
    still: list[Picture] = [(loading, [told("ollama", "starting", "loading llama3.2")])] * int(QUIET_S * 8)
    there: Picture = ({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": GPU_OFF}, [READY])
    serving = Serve(*pulls, *still, there)
    assert [late.pool for late in serving.waited()] == ["gpu"]
    assert any("ollama: pulling llama3.2: 40 %" in said for said in serving.said)
    assert serving.seconds > 2 * QUIET_S


def test_a_chat_that_does_not_say_for_once_how_the_pools_are_ends_no_load() -> None:
    loading = {"chat": CHAT, "ollama": serve("STARTING"), "gpu": GPU_OFF}
    word = told("ollama", "starting", "loading llama3.2")
    still: list[Picture] = [(loading, [word])] * int(QUIET_S * 5)
    there: Picture = ({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": GPU_OFF}, [READY])
    assert [late.pool for late in Serve(*still, (loading, []), there).waited()] == ["gpu"]


def test_where_no_pool_can_answer_and_none_will_by_itself_it_fails_soon_and_says_why_and_what_to_do() -> None:
    applications = {"chat": CHAT, "ollama": serve("RUNNING"), "gpu": serve("RUNNING")}
    serving = Serve((applications, [told("ollama", "starting", AWAY), told("gpu", "starting", "No server there.")]))
    said = fails(serving)
    assert said.startswith(f"No pool can answer: gpu: No server there; ollama: {AWAY}")
    assert "scripted" in said
    assert AWAY_S <= serving.seconds < AWAY_S + 1


def test_a_pull_that_fails_again_and_again_is_no_progress() -> None:
    applications = {"chat": CHAT, "ollama": serve("RUNNING"), "gpu": GPU_OFF}
    notes = ("pulling nonsense", "nonsense could not be pulled: file does not exist")
    serving = Serve(*[(applications, [told("ollama", "starting", notes[n % 2])]) for n in range(4_000)])
    assert "nonsense" in fails(serving)
    assert serving.seconds < QUIET_S + 10


def test_what_stands_still_for_minutes_fails_with_what_it_hangs_on() -> None:
    serving = Serve(({"chat": serve("STARTING", "RUNNING"), "ollama": serve("RUNNING")}, [READY]))
    said = fails(serving)
    assert "chat: Inference 1/2" in said
    assert QUIET_S <= serving.seconds < QUIET_S + 1


def test_a_mistake_fails_at_once_whatever_else_is_there() -> None:
    broken = {"status": "DEPLOY_FAILED", "message": "Traceback …\nModuleNotFoundError: no_such_module", "deployments": {}}
    serving = Serve(({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": broken}, [READY]))
    assert fails(serving) == "Application 'gpu' failed: ModuleNotFoundError: no_such_module"
    startless = serve("RUNNING", status="DEPLOY_FAILED")
    facts = {"status": "DEPLOY_FAILED", "status_trigger": "REPLICA_STARTUP_FAILED", "message": "…\nEngineError: vLLM is not here"}
    startless["deployments"]["Inference"] |= facts
    serving = Serve(({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": startless}, [READY]))
    assert fails(serving) == "Application 'gpu' failed: deployment Inference: EngineError: vLLM is not here"


def test_without_the_chat_no_pool_is_enough() -> None:
    coming: Picture = ({"ollama": serve("RUNNING"), "gpu": serve("RUNNING")}, [READY, told("gpu", "ready")])
    there: Picture = ({**coming[0], "chat": CHAT}, coming[1])
    serving = Serve(*[coming] * 4, there)
    assert serving.waited() == []
    assert serving.seconds == 1


def test_what_a_replica_says_that_serve_stops_or_does_not_know_counts_for_nothing() -> None:
    applications = {"chat": CHAT, "ollama": serve("STOPPING", "STARTING"), "gpu": GPU_OFF}
    gone = [told("ollama", "ready"), told("ollama", "ready", replica="earlier"), told("ollama", "starting", "loading", "r1")]
    after: Picture = ({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": GPU_OFF}, [READY])
    serving = Serve(*[(applications, gone)] * 400, after)
    assert [late.pool for late in serving.waited()] == ["gpu"]
    assert serving.seconds > 100


def test_a_pool_that_can_answer_while_the_rest_of_it_is_replaced_is_said_to_be_so() -> None:
    updating = serve("RUNNING", "STARTING")
    serving = Serve(({"chat": CHAT, "ollama": updating, "gpu": serve("RUNNING")}, [READY, told("gpu", "ready")]))
    assert serving.waited() == [Late("ollama", able=True, note="Inference 1/2")]


def test_a_pool_of_which_none_is_wanted_before_somebody_asks_can_answer_and_one_without_nodes_cannot() -> None:
    asleep = pool("gpu", autoscaling_config={"min_replicas": 0, "max_replicas": 2})
    policy = {"policy_function": "deployments.per_node:OnePerNode", "policy_kwargs": {"label": "aurora/ollama"}}
    labelled = {"label_selector": {"aurora/ollama": "true"}}
    nodeless = pool("ollama", autoscaling_config={"min_replicas": 0, "policy": policy}, ray_actor_options=labelled)
    config = {"applications": [asleep, nodeless, CONFIG["applications"][2]]}
    serving = Serve(({"chat": CHAT, "gpu": serve(), "ollama": serve()}, []))
    assert serving.waited(config) == [Late("ollama", able=False, note="on no node yet; it asks for aurora/ollama=true")]
    assert GRACE_S <= serving.seconds < GRACE_S + 1, "the nodes are counted only after it was deployed"


def test_a_dashboard_that_is_slow_for_a_moment_is_waited_for() -> None:
    there: Picture = ({"chat": CHAT, "ollama": serve("RUNNING"), "gpu": serve("RUNNING")}, [READY, told("gpu", "ready")])
    away = ServeAway("Ray's dashboard at http://10.0.0.1:8265 does not answer")
    assert Serve(*[away] * 10, there).waited() == []
    assert "does not answer" in fails(Serve(away))


def test_a_configuration_without_pools_is_there_when_it_runs() -> None:
    config = {"applications": [{"name": "broken", "import_path": "no_such_module:app"}]}
    assert Serve(({"broken": serve("STARTING")}, []), ({"broken": CHAT}, [])).waited(config) == []
