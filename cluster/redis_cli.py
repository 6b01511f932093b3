"""`aurora-cli redis`: the chat's Redis on the nodes of a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from cluster import cluster_file, redis_primary
from cluster.node.cli import CLUSTER
from cluster.progress import Progress
from cluster.terminal import out, told_plainly

app = typer.Typer(help="The chat's Redis on the nodes of a cluster.", no_args_is_help=True)


@app.callback()
def redis() -> None:
    """Keep `move` a command of its own though it is the only one."""


@app.command()
def move(
    to: Annotated[str | None, typer.Option(help="The node that is to have it; else the replica that has most.")] = None,
    config: Annotated[Path, typer.Option(help="The cluster file.")] = CLUSTER,
) -> None:
    """Move the primary to another node while messages go on: nothing that was acknowledged is lost."""
    with told_plainly():
        redis_primary.move(cluster_file.load(config), to, Progress(out))
