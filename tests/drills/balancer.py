"""A load balancer in front of the lab, in the clients' network: Debian's, with what `aurora-cli lb` prints."""

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
from cluster.settings import PROJECT_ROOT
from tests.drills.stage import NotReady
from tests.support.balancer import run_command, stop

_STARTS_S = 10.0


@contextmanager
def balancer(lab: Lab, program: str = "haproxy", port: int = 8080) -> Iterator[str]:
    """Have `program` (haproxy, nginx) run over the lab's nodes; give its URL, which answers.

    Raises:
        NotReady: it does not start; carries what it said.
    """
    printed = subprocess.run(
        [sys.executable, "-m", "cluster", "lb", program, "--cluster", str(CLUSTER), "--listen", str(port)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if printed.returncode != 0:
        raise NotReady(f"aurora-cli lb {program}: {printed.stderr.strip()}")
    with TemporaryDirectory(prefix="aurora-drill-lb-") as folder:
        config, log = Path(folder) / f"{program}.conf", Path(folder) / "log"
        config.write_text(printed.stdout)
        with log.open("wb") as output:
            process = subprocess.Popen(lab.command(CLIENTS, run_command(program, config)), stdout=output, stderr=output)
        try:
            url = f"http://{CLIENTS_ADDRESS}:{port}"
            deadline = time.monotonic() + _STARTS_S
            while not lab.call(lambda: _answers(url)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NotReady(f"{program} does not start: {log.read_text(errors='replace').strip()[-300:]}")
                time.sleep(0.1)
            yield url
        finally:
            stop(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
