"""A pool on GPUs (as Ray counts them) grows with its load up to the GPUs there are, and shrinks without ending an answer."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console

from cluster.lab import Lab
from cluster.lab.up import bring_up, take_down
from cluster.progress import Progress
from cluster.settings import PROJECT_ROOT
from serve_app.chat.events import Started
from tests.support.lab import Nodes, client_network, remains, spaces
from tests.support.serving import Asked, undisturbed
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(400)]
GPUS = 3
LONG: dict[str, object] = {"words": 600, "words_per_second": 10}
ENDLESS: dict[str, object] = {"words": 4000, "words_per_second": 10}


def config() -> dict[str, Any]:
    """The lab's configuration, with a pool that wants a GPU for each replica and scales with its load."""
    base: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "configs" / "lab.yaml").read_text())
    scripted, chat = base["applications"]
    gpu = {**deepcopy(scripted), "name": "gpu"}
    (inference,) = gpu["deployments"]
    inference |= {
        "graceful_shutdown_timeout_s": 120,
        "ray_actor_options": {"num_cpus": 0, "num_gpus": 1},
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": 8,
            "target_ongoing_requests": 3,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
        },
    }
    chat["args"]["pools"] = {"gpu": chat["args"]["pools"]["scripted"]}
    return {**base, "applications": [gpu, chat]}


@pytest.fixture
def gpu_lab(fit: None, tmp_path: Path) -> Iterator[Lab]:
    """A lab of its own, as another pool means another chat."""
    (tmp_path / "configs").symlink_to(PROJECT_ROOT / "configs")
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config(), sort_keys=False))
    bring_up(Progress(Console()), config=file)
    made_of = spaces()
    try:
        with Lab() as lab, client_network():
            yield lab
    finally:
        take_down()
    assert remains(made_of) == []


def running(lab: Lab) -> dict[str, str]:
    """The replicas of the pool that Serve wants, and where each is; one that ends its last answers is none of them."""
    application = lab.call(lambda: lab.serve.details(timeout=10))["applications"]["gpu"]
    found = application["deployments"]["Inference"]["replicas"]
    return {replica["replica_id"]: replica["node_ip"] for replica in found if replica["state"] == "RUNNING"}


def ran_on(asked: Asked) -> str:
    return next(event.replica for _, event in asked.events if isinstance(event, Started))


async def test_it_grows_to_the_gpus_there_are_and_a_live_answer_survives_that_it_shrinks(gpu_lab: Lab) -> None:
    lab, among = gpu_lab, Nodes(gpu_lab, "aurora")
    assert len(running(lab)) == 1
    async with AsyncExitStack() as clients:

        async def ask(client: str, options: dict[str, object]) -> Asked:
            return await clients.enter_async_context(Asked(among, client, "Hello", options))

        # Five answers that outlive the crowd want two replicas, and are to be on all three: two on the first one …
        long = [await ask(f"early{number}", LONG) for number in range(2)]
        crowd = [await ask(f"crowd{number}", ENDLESS) for number in range(14)]  # all together six; there are GPUs for three
        await until(lambda: len(running(lab)) == GPUS, timeout=60)
        assert len(set(running(lab).values())) == GPUS, "a GPU each"
        seen = {ran_on(asked) for asked in [*long, *crowd] if await asked.pieces(1) is None}
        numbers = count()

        async def all_are_known() -> bool:
            async with Asked(among, f"probe{next(numbers)}", "Hello", {"words": 1}) as asked:
                await asked.end()
                seen.add(ran_on(asked))
            return len(seen) == GPUS

        await until(all_are_known, timeout=30)  # to the router of this door: it looks once a second
        long += [await ask(f"late{number}", LONG) for number in range(3)]  # … and three on the others, which are less busy
        for asked in long:
            await asked.pieces(5)
        assert {ran_on(asked) for asked in long} == set(running(lab))
        async with httpx.AsyncClient(base_url=lab.url("aurora"), timeout=30, trust_env=False) as http:
            for asked in crowd:
                path = f"/api/turns/{asked.events[0][1].turn_id}"
                (await http.delete(path, params={"client_id": asked.client_id})).raise_for_status()
        await until(lambda: len(running(lab)) < GPUS, timeout=60)
        assert not any(asked.assembly.end for asked in long), "it shrank while all of them were at it"
        assert {ran_on(asked) for asked in long} > set(running(lab)), "some were on a replica that went"
        for asked in long:
            assert await asked.end() == await undisturbed("Hello", LONG)
            asked.check()
            assert asked.assembly.attempt == 1, "nobody had to take over"
