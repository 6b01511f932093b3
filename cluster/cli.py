"""The command `aurora-cli`: what a person types to run Aurora on a machine and to see how it is."""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cluster import cluster_file, cluster_status, redis_server, run_record, serve_config
from cluster import logs as log_files
from cluster.balancer.cli import app as lb
from cluster.chat_terminal import chat
from cluster.down import stop
from cluster.failures import LifecycleError
from cluster.lab.cli import app as lab
from cluster.node.cli import CLUSTER
from cluster.node.cli import app as node
from cluster.progress import Progress
from cluster.redis_cli import app as redis
from cluster.run_record import RunRecord
from cluster.serve_api import ServeApi
from cluster.settings import Settings
from cluster.status import components as current_components
from cluster.status import is_a_node
from cluster.status_lines import show_cluster, show_table
from cluster.terminal import err, out, signals_as_interrupt, told_plainly
from cluster.up import LOCAL, bring_up, rendered, serve_api
from cluster.up import deploy as deploy_to

app = typer.Typer(help="Run Aurora on this machine, and see how it is.", no_args_is_help=True, add_completion=False)


@app.command()
def up(
    config: Annotated[
        Path | None,
        typer.Option(
            help="The Serve configuration to run; else configs/local-ollama.yaml where an Ollama answers, "
            "configs/local.yaml where none does."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the chat API (else AURORA_HOST, else 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the chat API (else AURORA_PORT, else 8000).")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until a message has been answered.")] = True,
) -> None:
    """Start Redis, Ray and the chat on this machine. Changes nothing when they run already."""
    with told_plainly():
        settings = _settings(host=host, port=port)
        with signals_as_interrupt(), run_record.lock(settings.home, on_wait=_say_waiting):
            record, started = bring_up(settings, config, wait=wait, progress=Progress(out))
        if started and not wait:
            out.print("Aurora is starting: [bold]aurora-cli status[/bold] shows how far it is.")
        elif not started:
            out.print(f"Aurora is already up, since {record.started_at:%Y-%m-%d %H:%M:%S} UTC; nothing was changed.")
            if (record.host, record.port) != (settings.host, settings.port):
                out.print(f"(It listens on {record.host}:{record.port}; to change that: aurora-cli down, then up.)")
        _show_addresses(record)


@app.command()
def down() -> None:
    """Stop all that `up` started, and nothing else. The conversations stay."""
    with told_plainly():
        settings = _settings()
        with run_record.lock(settings.home, on_wait=_say_waiting):
            stopped = stop(settings)
        out.print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing of Aurora is running here.")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    cluster: Annotated[
        Path | None, typer.Option(help="Show the cluster of this file; by itself on a machine that is a node.")
    ] = None,
) -> None:
    """Show every component, a line each: of this machine, or of the whole cluster."""
    with told_plainly():
        settings = _settings()
        if cluster is None and is_a_node(settings):
            cluster = CLUSTER
        if cluster is not None:
            show_cluster(cluster_status.look(cluster_file.load(cluster)), as_json=as_json)
            return
        found = current_components(settings)
        if as_json:
            print(json.dumps([component.model_dump() for component in found], indent=2))
        elif found:
            show_table(found)
        else:
            out.print("Aurora is not up here: start it with make up (or aurora-cli up).")
        if not found:
            raise typer.Exit(1)


@app.command()
def logs(
    component: Annotated[str, typer.Argument(help=f"One of: {', '.join(log_files.COMPONENTS)}.")] = "chat-backend",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines of each file.")] = 100,
) -> None:
    """Show the logs of a component, of the current run or else of the last."""
    with told_plainly():
        settings = _settings()
        found = log_files.files(settings, component)
        if not found and not follow:
            raise LifecycleError(f"There are no logs of {component} yet.")
        shown: Path | None = None
        for path, line in _log_lines(settings, component, found, lines, follow):
            if path != shown:
                print(f"==> {path}")
                shown = path
            print(line, flush=follow)
        if shown is None:
            err.print(f"Nothing is written yet in {', '.join(str(path) for path in found)}", markup=False)


@app.command()
def deploy(
    file: Annotated[
        Path | None,
        typer.Argument(help="The Serve configuration to run; else what runs, as its files are now, or the cluster's."),
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print what Serve would be told, fit for `serve deploy`.")] = False,
    cluster: Annotated[
        Path | None, typer.Option(help="Hand it to the cluster of this file; by itself on a machine that is a node.")
    ] = None,
) -> None:
    """Hand a configuration, or changed personalities, to the Aurora that runs here, or to the cluster."""
    with told_plainly():
        settings = _settings()
        if cluster is None and is_a_node(settings):
            cluster = CLUSTER
        api: ServeApi | None
        if cluster is not None:
            described = cluster_file.load(cluster)
            config = serve_config.render(file or described.serve_config, host="0.0.0.0", port=described.port)
            api, at = ServeApi(described.dashboard_url, described.dashboard_headers), described.url(described.head)
        elif record := run_record.load(settings.home):
            config = rendered(record, file)
            api, at = serve_api(record) if record.processes_alive else None, record.api_url
        else:
            config, api, at = serve_config.render(file or LOCAL, host=settings.host, port=settings.port), None, ""
        if only_print:
            print(serve_config.as_yaml(config), end="")
        elif api is None:
            raise LifecycleError("Aurora is not up here: start it with aurora-cli up.")
        else:
            deploy_to(api, config, Progress(out), chat=at)


@app.command()
def version() -> None:
    """Print the versions of Aurora and of what it stands on."""
    for name in ("aurora", "ray", "redis"):
        print(f"{name} {importlib.metadata.version(name)}")


app.command()(chat)
app.add_typer(node, name="node")
app.add_typer(lab, name="lab")
app.add_typer(lb, name="lb")
app.add_typer(redis, name="redis")


def _settings(*, host: str | None = None, port: int | None = None) -> Settings:
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    try:
        return Settings.model_validate({**Settings().model_dump(), **given}) if given else Settings()
    except ValidationError as error:
        first = error.errors()[0]
        raise LifecycleError(f"AURORA_{str(first['loc'][0]).upper()}: {first['msg']}.") from error


def _say_waiting() -> None:
    out.print("Another aurora-cli is at work on this home; waiting for it …")


def _log_lines(settings: Settings, component: str, found: list[Path], lines: int, follow: bool) -> Iterator[tuple[Path, str]]:
    yield from log_files.last_lines(found, lines)
    if follow:
        yield from log_files.follow(settings, component)


def _show_addresses(record: RunRecord) -> None:
    lines = {
        "chat API": record.api_url,
        "docs": f"{record.api_url}/docs",
        "Ray dashboard": record.dashboard_url,
        "Redis": redis_server.without_password(record.redis_url),
    }
    for name, url in lines.items():
        out.print(f"  {name:<14} {url}", markup=False)
    if record.token_file:
        out.print(
            f"\nThe chat listens on {record.host}: everybody who reaches this machine can use it.\n"
            "Ray's dashboard runs code for whoever opens it: it stays on this machine's loopback address and asks for a token.\n"
            f"From elsewhere:  ssh -L {record.dashboard_port}:127.0.0.1:{record.dashboard_port} THIS_MACHINE, "
            f"then {record.dashboard_url} with the token in {record.token_file}",
            markup=False,
        )
