"""The first deployment of a cluster: the head hands Serve its configuration once, and never again.

What runs from then on is what was last deployed (`aurora-cli deploy`): Ray keeps that in its control Redis, and there lies the
mark of the first time too, so that the two are lost together or not at all. Run as a program, beside the Ray that starts.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cluster import cluster_file, serve_config
from cluster.cluster_file import ClusterFile
from cluster.failures import LifecycleError
from cluster.node import agreement
from cluster.serve_api import ServeApi

FAILED = "Nothing is deployed: "
"""How the line begins that says why."""

_PATIENCE_S = 300


def is_due(cluster: ClusterFile, *, say: Callable[[str], None]) -> bool:
    """Tell whether nothing was ever deployed on this cluster."""
    with agreement.control_redis(cluster, say=say) as client:
        return not client.exists(_mark(cluster))


def start(config: Path, deploy: Path, *, env: Mapping[str, str], folder: Path) -> None:
    """Start the program, which waits for Ray by itself and writes where this process does."""
    command = [sys.executable, "-m", "cluster.node.first_deploy", str(config), str(deploy)]
    subprocess.Popen(command, env=dict(env), cwd=folder, stdin=subprocess.DEVNULL)


def hand_over(cluster: ClusterFile, deploy: Path, *, say: Callable[[str], None]) -> None:
    """Have Serve run the configuration `deploy` as soon as Ray's head answers.

    Raises:
        LifecycleError: the file is wrong, Ray does not answer for five minutes, or Serve refuses.
    """
    rendered = serve_config.render(deploy, host="0.0.0.0", port=cluster.port)
    serve = ServeApi(cluster.dashboard_url, cluster.dashboard_headers)
    deadline = time.monotonic() + _PATIENCE_S
    while not serve.answers():
        if time.monotonic() > deadline:
            raise LifecycleError(f"Ray's dashboard at {cluster.dashboard_url} does not answer after {_PATIENCE_S} s.")
        time.sleep(0.2)
    serve.deploy(rendered)
    with agreement.control_redis(cluster, say=say) as client:
        client.set(_mark(cluster), datetime.now(UTC).isoformat(timespec="seconds"))
    say(f"Deployed for the first time: {deploy}.")


def _mark(cluster: ClusterFile) -> str:
    return f"{agreement.key(cluster)}:deployed"


def main(config: Path, deploy: Path) -> int:
    """Deploy for the first time; return the exit code."""

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        hand_over(cluster_file.load(config), deploy, say=say)
    except LifecycleError as error:
        say(f"{FAILED}{error} When that is mended: aurora-cli deploy.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
