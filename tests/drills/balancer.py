"""The load balancer in front of the lab, in the clients' network: Debian's HAProxy with what `aurora-cli lb haproxy` prints."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from cluster.lab.lab import Lab
from cluster.lab.places import CLIENTS, CLIENTS_ADDRESS, CLUSTER
from cluster.packages import ensure
from cluster.settings import PROJECT_ROOT
from tests.drills.primary import NotReady
from tests.drills.seen import BALANCER

_PORT = 8080
_STARTS_S = 10.0


@contextmanager
def balancer(lab: Lab) -> Iterator[dict[str, str]]:
    """Have a balancer run; give its door's URL by its name.

    Raises:
        NotReady: it does not start; carries what it said.
    """
    printed = subprocess.run(
        [sys.executable, "-m", "cluster", "lb", "haproxy", "--cluster", str(CLUSTER), "--listen", str(_PORT)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if printed.returncode != 0:
        raise NotReady(f"aurora-cli lb haproxy: {printed.stderr.strip()}")
    with TemporaryDirectory(prefix="aurora-drill-lb-") as folder:
        config, log = Path(folder) / "haproxy.cfg", Path(folder) / "log"
        config.write_text(printed.stdout)
        command = lab.command(CLIENTS, [ensure("haproxy"), "-db", "-f", str(config)])
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            url = f"http://{CLIENTS_ADDRESS}:{_PORT}"
            deadline = time.monotonic() + _STARTS_S
            while not lab.call(lambda: _answers(url)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NotReady(f"The balancer does not start: {log.read_text(errors='replace').strip()[-300:]}")
                time.sleep(0.1)
            yield {BALANCER: url}
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
