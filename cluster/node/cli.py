"""`aurora-cli node`: this machine as a node of a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from cluster import cluster_file, redis_primary, units
from cluster.cluster_file import ClusterFile, NodeSpec
from cluster.failures import LifecycleError
from cluster.node import drain as node_drain
from cluster.node import start as node_start
from cluster.node.install import run as install_node
from cluster.node.installation import Installation, default_config
from cluster.node.stop import stop as stop_node
from cluster.progress import Progress
from cluster.settings import PROJECT_ROOT, Settings
from cluster.terminal import out, told_plainly

app = typer.Typer(help="This machine as a node of a cluster.", no_args_is_help=True)

CLUSTER = PROJECT_ROOT / "configs" / "cluster.yaml"
Config = Annotated[Path, typer.Option(help="The cluster file.")]
Head = Annotated[bool, typer.Option("--head", help="Be the head; the cluster file must say so too.")]
Join = Annotated[str | None, typer.Option(help="Join this head: its name or address; a machine not in the file may.")]
Name = Annotated[str | None, typer.Option(help="Name of this node; else found by the addresses of this machine.")]
Label = Annotated[list[str] | None, typer.Option(help="KEY=VALUE, a Ray label of a machine not in the file.")]


@app.command()
def start(
    head: Head = False,
    join: Join = None,
    name: Name = None,
    label: Label = None,
    autoscaling: Annotated[
        Path | None, typer.Option("--autoscaling-config", help="On the head, where `ray up` starts it: Ray's launcher file.")
    ] = None,
    deploy: Annotated[
        Path | None, typer.Option(help="On the head: what a new cluster is to serve, else what the cluster file names.")
    ] = None,
    config: Config = CLUSTER,
) -> None:
    """Start this machine as a node, in the foreground; refuses where it differs from the head."""
    with told_plainly():
        cluster = cluster_file.load(config)
        who, node = _this_machine(cluster, config, head=head, join=join, name=name, label=label)
        node_start.run(
            Settings(),
            cluster,
            who,
            node,
            config=config.resolve(),
            deploy=(deploy or cluster.serve_config).resolve(),
            is_head=who == cluster.head,
            autoscaling=autoscaling,
            say=lambda text: print(text, flush=True),
        )


@app.command()
def install(
    head: Head = False,
    join: Join = None,
    name: Name = None,
    label: Label = None,
    config: Annotated[Path | None, typer.Option(help="The cluster file; else the one already installed.")] = None,
    prefix: Annotated[Path, typer.Option(help="Where the node is to live.")] = units.PREFIX,
    systemd: Annotated[bool, typer.Option("--systemd/--no-systemd", help="Without: touch nothing outside --prefix.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Install this machine's node: code, Python packages, configuration, Redis, units. Starts nothing; may be repeated."""
    with told_plainly():
        prefix = prefix.expanduser().absolute()
        config = config or default_config(prefix)
        cluster = cluster_file.load(config)
        who, node = _this_machine(cluster, config, head=head, join=join, name=name, label=label)
        install_node(Installation(cluster, config, who, node, prefix=prefix, systemd=systemd), Progress(out), dry_run=dry_run)


@app.command()
def stop() -> None:
    """Stop what `node start` started here, by its unit where systemd runs it; another service manager must not restart it."""
    with told_plainly():
        stopped = stop_node(Settings())
        print(f"Stopped: Ray and Serve ({stopped} processes)." if stopped else "No node of Aurora runs here.")


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="The node that is to leave.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has nothing in hand.")] = True,
    timeout: Annotated[float, typer.Option(min=0, max=3600, help="Seconds for live answers to finish; then they move.")] = 30,
    cancel: Annotated[bool, typer.Option("--cancel", help="Let it stay after all.")] = False,
    then_stop: Annotated[
        bool, typer.Option("--stop", help="Then stop it, by its unit where systemd runs it; only on the node itself.")
    ] = False,
    config: Config = CLUSTER,
) -> None:
    """Let a node leave: Redis's primary moves, live answers finish or move, WebSockets go elsewhere. Then it can be stopped."""
    with told_plainly():
        cluster = cluster_file.load(config)
        leaving = node_drain.Drain(cluster.redis_url, name)
        if cancel:
            print(f"{name} stays." if leaving.cancel() else f"{name} was not leaving.")
            return
        if then_stop and (not wait or node_start.this_node(cluster, None)[0] != name):
            raise LifecycleError(f"--stop needs --wait, and must be said on {name} itself.")
        redis_primary.move_away(cluster, name, Progress(out))
        left_s = node_drain.begin(leaving, name, timeout_s=timeout)
        if not wait:
            print(f"{name} is leaving. To see how far it is, say the same with --wait; to let it stay, --cancel.")
            return
        with Progress(out).step(f"{name} is leaving") as detail:
            node_drain.wait(leaving, name, timeout_s=left_s, tell=detail)
        if then_stop:
            if not stop_node(Settings()):
                raise LifecycleError(f"{name} has nothing in hand any more, but no node runs here: is AURORA_HOME the node's?")
            print(f"{name} is stopped.")
        else:
            unit = (units.HEAD if name == cluster.head else units.WORKER).removesuffix(".service")
            print(f"{name} has nothing in hand any more: it is safe to stop.")
            print(f"On {name}: sudo systemctl stop {unit} where systemd runs it, else aurora-cli node stop.")
            print(f"If it is not stopped, it serves again {node_drain.KEPT_S // 60} minutes after its time was up.")


def _this_machine(
    cluster: ClusterFile, config: Path, *, head: bool, join: str | None, name: str | None, label: list[str] | None
) -> tuple[str, NodeSpec]:
    if join is not None and join not in (cluster.head, cluster.head_address):
        raise LifecycleError(f"The head in {config} is {cluster.head} at {cluster.head_address}, not {join}.")
    if join is not None and not node_start.is_named(cluster, name):
        who, node = node_start.newcomer(cluster, name, _labels(label or []))
    else:
        who, node = node_start.this_node(cluster, name)
    if (head and who != cluster.head) or (join and who == cluster.head):
        raise LifecycleError(f"The head in {config} is {cluster.head}, and this is {who}: correct the one or the other.")
    return who, node


def _labels(given: list[str]) -> dict[str, str]:
    labels = dict(each.partition("=")[::2] for each in given)
    if "" in labels or not all(labels.values()):
        raise LifecycleError(f"--label wants KEY=VALUE, not {' '.join(given)}.")
    if cluster_file.NODE_LABEL in labels:
        raise LifecycleError(f"{cluster_file.NODE_LABEL} is the node's name and comes by itself: give --name instead.")
    return labels
