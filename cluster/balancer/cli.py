"""`aurora-cli lb`: a complete configuration for a load balancer in front of the cluster as it is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cluster.balancer import backends, render
from cluster.failures import LifecycleError
from cluster.settings import PROJECT_ROOT
from cluster.terminal import told_plainly

app = typer.Typer(help="Print the configuration of a load balancer in front of all nodes.", no_args_is_help=True)

CLUSTER = PROJECT_ROOT / "configs" / "cluster.yaml"
Cluster = Annotated[Path | None, typer.Option("--cluster", help=f"The cluster file. [default: {CLUSTER.name} in configs]")]
From = Annotated[str, typer.Option("--from", help="Ask this node instead, like http://10.0.0.1:8000, which nodes serve now.")]
Listen = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the balancer; 80, or 443 with --tls.")]
Tls = Annotated[Path | None, typer.Option(help="Certificate (PEM) to serve TLS with.")]
TlsKey = Annotated[Path | None, typer.Option(help="Its key (PEM).")]


@app.command()
def haproxy(cluster: Cluster = None, node: From = "", listen: Listen = None, tls: Tls = None) -> None:
    """HAProxy: asks every node how it is, and frees users of a frozen one. --tls names one file: certificate, then key."""
    _print(render.haproxy, cluster, node, listen, tls, None)


@app.command()
def nginx(cluster: Cluster = None, node: From = "", listen: Listen = None, tls: Tls = None, tls_key: TlsKey = None) -> None:
    """Nginx: notices what fails under a request, and sends it elsewhere."""
    _print(render.nginx, cluster, node, listen, tls, tls_key, needs_key=True)


@app.command()
def caddy(cluster: Cluster = None, node: From = "", listen: Listen = None, tls: Tls = None, tls_key: TlsKey = None) -> None:
    """Caddy: asks every node how it is, and gets its own certificates."""
    _print(render.caddy, cluster, node, listen, tls, tls_key, needs_key=True)


def _print(
    write: Callable[[Sequence[backends.Backend], render.Front], str],
    cluster: Path | None,
    node: str,
    listen: int | None,
    tls: Path | None,
    key: Path | None,
    *,
    needs_key: bool = False,
) -> None:
    with told_plainly():
        if cluster is not None and node:
            raise LifecycleError("Give --cluster or --from, not both.")
        if needs_key and (tls is None) != (key is None):
            raise LifecycleError("--tls and --tls-key belong together: the certificate and its key.")
        found = backends.from_node(node) if node else backends.from_file(cluster or CLUSTER)
        front = render.Front(listen or (443 if tls else 80), tls and tls.absolute(), key and key.absolute())
        print(write(found, front), end="")
