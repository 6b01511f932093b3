"""The engine vllm in a real Serve application: two replicas, one is killed in the middle of its reply, the other goes on."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.settings import PROJECT_ROOT
from tests.cluster.conftest import Home, new_home
from tests.support.serving import Asked, Serving
from tests.vllm.engines import config

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

COLD: dict[str, object] = {"max_tokens": 900, "temperature": 0}
MESSAGES = [f"Tell me the story of the {'other ' * number}house" for number in range(8)]


def application(folder: Path) -> dict[str, object]:
    """Return the configuration of the cluster tests, with this engine in the pool."""
    document = yaml.safe_load((PROJECT_ROOT / "tests" / "cluster" / "survive.yaml").read_text())
    pool, chat = document["applications"]
    pool["args"] = {"engine": config(folder).model_dump(mode="json")}
    # Under `health_check_timeout_s` the first check loads the model.
    pool["deployments"][0] |= {"health_check_timeout_s": 120}
    chat["args"]["pools"]["scripted"] = {"engine": "vllm", "model": folder.name, "language_model": True}
    return dict(document)


@pytest.fixture(scope="module")
def home(byte_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    file = tmp_path_factory.mktemp("serve") / "vllm.yaml"
    file.write_text(yaml.safe_dump(application(byte_folder)))
    with new_home() as home:
        home.up("--config", str(file))
        yield home


async def said(serving: Serving, number: int) -> str:
    """Return the reply to a message when nothing happens to it."""
    async with Asked(serving, f"quiet{number}", MESSAGES[number], COLD) as asked:
        text = await asked.end()
        asked.check()
    return text


async def test_kill_9_of_the_generating_replica_is_a_pause_and_the_text_is_the_undisturbed_one(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = Serving(home.url, home.record.dashboard_url, home.record.redis_url)
    await serving.until_whole()
    replies = {number: await said(serving, number) for number in range(len(MESSAGES))}
    number = max(replies, key=lambda at: len(replies[at]))
    replicas = {replica.replica_id: replica for replica in serving.replicas("Inference")}
    assert len(replicas) == 2
    async with Asked(serving, "killed", MESSAGES[number], COLD) as asked:
        await asked.pieces(5)
        victim = replicas[asked.running_on()]
        orphans = psutil.Process(victim.pid).children(recursive=True)
        assert orphans, "the engine has no process"
        serving.kill([victim])
        text = await asked.end()
        asked.check()
    assert asked.assembly.attempt == 2, "the fault did not hit"
    assert text == replies[number]
    with capsys.disabled():
        print(f"\n  replica killed: gap {asked.gap():.2f} s, continued after {len(asked.assembly.pieces)} pieces in all")
    await serving.until_whole(300)
    assert not [process for process in orphans if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
