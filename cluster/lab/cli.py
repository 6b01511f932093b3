"""`aurora-cli lab`: four nodes on this machine, and faults for them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cluster.failures import LifecycleError
from cluster.lab import up as lab_up
from cluster.lab.lab import REPLICA, Lab
from cluster.lab.status import look
from cluster.progress import Progress
from cluster.status_lines import show_cluster
from cluster.terminal import out, signals_as_interrupt, told_plainly

app = typer.Typer(help="Four nodes on this Linux machine, to see what survives what. Needs root.", no_args_is_help=True)

Node = Annotated[str, typer.Argument(help="aurora, star, vengeance or iceland.")]


@app.command()
def up(
    config: Annotated[Path | None, typer.Option(help="Serve configuration, else configs/lab.yaml.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Where it fails, leave what was started, to look at it.")] = False,
) -> None:
    """Start the four nodes, their Redis and the chat, and wait until each has answered a message."""
    with told_plainly():
        with signals_as_interrupt():
            lab_up.bring_up(Progress(out), config=config, keep=keep)
        with Lab() as lab:
            for node in lab.nodes:
                out.print(f"  {node:<10} {lab.url(node)}", markup=False)
        out.print(
            "\nOnly the lab reaches these addresses. A shell among its clients, or on a node:\n"
            "  aurora-cli lab exec clients -- curl -s http://198.18.0.2:8000/\n"
            "  aurora-cli lab exec star -- bash\n"
            "One more machine: aurora-cli lab join guest\n"
            "Faults: aurora-cli lab kill star | freeze star | partition star | heal star | start star; then: aurora-cli lab down",
            markup=False,
        )


@app.command()
def down() -> None:
    """Take the lab away, with all that it left; also after a crash."""
    with told_plainly(), signals_as_interrupt():
        out.print("The lab is gone." if lab_up.take_down() else "There is no lab on this machine.")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show every node, deployment and Redis, a line each."""
    with told_plainly(), Lab() as lab:
        show_cluster(look(lab), as_json=as_json)


@app.command()
def kill(
    target: Annotated[str, typer.Argument(help="NODE, redis-primary, redis-control, or replica.")],
    replica: Annotated[str, typer.Argument(metavar="APP/DEPLOYMENT@NODE", help="Which replica; also without that word.")] = "",
    hold: Annotated[bool, typer.Option("--hold", help="Of a Redis: keep it away until `lab start`.")] = False,
) -> None:
    """Kill -9: a node with all that lives on it, a Redis, or a replica."""
    with told_plainly(), Lab() as lab:
        out.print(f"Killed: {lab.kill(_one_target(target, replica), hold=hold)}.")


@app.command()
def start(target: Annotated[str, typer.Argument(help="NODE, redis-control, or redis@NODE.")]) -> None:
    """Start a node that is down, with the data it had, or a Redis that was held."""
    with told_plainly(), Lab() as lab:
        lab.start(target)
        out.print(f"Started: {target}.")


@app.command()
def join(name: Annotated[str, typer.Argument(help="Its name: up to 10 letters and digits.")]) -> None:
    """Let one more machine join, which no file names; it serves after about 20 s."""
    with told_plainly(), Lab() as lab:
        lab.join(name)
        out.print(f"Joining: {name}, at {lab.url(name)}.", markup=False)


@app.command()
def freeze(node: Node) -> None:
    """Stop every process of a node where it stands: a hang, not a death."""
    with told_plainly(), Lab() as lab:
        lab.freeze(node)
        out.print(f"Frozen: {node}. To undo: aurora-cli lab heal {node}")


@app.command()
def partition(node: Node) -> None:
    """Let all packets to and from a node vanish."""
    with told_plainly(), Lab() as lab:
        lab.partition(node)
        out.print(f"Partitioned: {node}. To undo: aurora-cli lab heal {node}")


@app.command()
def heal(node: Node) -> None:
    """Undo freeze and partition."""
    with told_plainly(), Lab() as lab:
        lab.heal(node)
        out.print(f"Healed: {node}.")


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    where: Annotated[str, typer.Argument(help="A node, or clients.")],
    command: Annotated[list[str], typer.Argument(help="What to run there.")],
) -> None:
    """Run a command on a node, or in the clients' network."""
    with told_plainly():
        with Lab() as lab:
            line = lab.command(where, command)
        os.execv(line[0], line)


def _one_target(word: str, after: str) -> str:
    """Return what is to be killed: `word`, or what comes after it where `word` is "replica"."""
    if word != "replica":
        if after:
            raise LifecycleError(f"One target at a time: {after!r} is too much after {word!r}.")
        return word
    if not REPLICA.match(after):  # `replica star` must not kill the whole node
        raise LifecycleError("replica wants APP/DEPLOYMENT@NODE, as in: aurora-cli lab kill replica chat/Ingress@star.")
    return after
