"""How things are as lines on a terminal: of one machine, of a cluster, of the lab."""

import time
from collections.abc import Iterator, Sequence

import typer

from cluster.cluster_status import ClusterStatus, NodeStatus
from cluster.component import Component
from cluster.pool_status import pool_lines
from cluster.redis_status import LastTakeover, RedisServer
from cluster.terminal import out

_COLOURS = {"running": "green", "healthy": "green", "down": "red", "failing": "red", "unhealthy": "red"}


def show_table(components: Sequence[Component]) -> None:
    """Print a line per component, in columns."""
    widths = [
        max(len(value) for value in column) for column in zip(*((c.name, c.state, c.where) for c in components), strict=True)
    ]
    for component in components:
        colour = _COLOURS.get(component.state, "yellow")
        name, where = component.name.ljust(widths[0]), component.where.ljust(widths[2])
        out.print(f"{name}  [{colour}]{component.state.ljust(widths[1])}[/{colour}]  ", end="")
        out.print(f"{where}  {component.note}".rstrip(), markup=False)


def show_cluster(status: ClusterStatus, *, as_json: bool) -> None:
    """Print how a cluster is; exits with 1 where nobody gets an answer from it."""
    if as_json:
        print(status.model_dump_json(indent=2))
    else:
        show_table(lines(status))
    if not status.serves:
        raise typer.Exit(1)


def lines(status: ClusterStatus, *, now: float | None = None) -> list[Component]:
    """Return a line per node, deployment and Redis, then one for the turns. `now` is the time in seconds since 1970."""
    turns = _turns(status, time.time() if now is None else now)
    return [*_nodes(status), *_ray(status), *pool_lines(status.pools), *_redis(status), turns]


def _nodes(status: ClusterStatus) -> Iterator[Component]:
    for node in status.nodes:
        facts = [node.note, *([f"{node.latency_ms:.0f} ms"] if node.latency_ms is not None else []), _replicas(node)]
        name = f"chat-backend {node.name}" + (" (head)" if node.head else "")
        yield Component(name=name, state=node.state, where=node.url, note=", ".join(filter(None, facts)))


def _replicas(node: NodeStatus) -> str:
    return ", ".join(name if count == 1 else f"{name} × {count}" for name, count in sorted(node.replicas.items()))


def _ray(status: ClusterStatus) -> Iterator[Component]:
    there = status.head == "running"
    note = "" if there else f"{status.head.rstrip('.')}; the chat goes on without it"
    yield Component(name="ray", state="running" if there else "down", where="head", note=note)
    yield Component(name="ray's redis", state=status.control_redis, where="control")
    for deployment in status.deployments:
        note = f"{deployment.running}/{deployment.wanted} replicas"
        note += f" ({', '.join(deployment.others)})" if deployment.others else ""
        yield Component(name=deployment.name, state=deployment.state, where="deployment", note=note)


def _redis(status: ClusterStatus) -> Iterator[Component]:
    node_of = {node.url.partition("//")[2].partition(":")[0]: node.name for node in status.nodes}
    for server in status.redis.servers:
        yield Component(
            name=f"redis {node_of.get(server.address.partition(':')[0], '')}".rstrip(),
            state="down" if server.state == "down" else "running" if server.linked else "failing",
            where=server.address,
            note=_role(server, status.redis.primary),
        )
    if sentinels := status.redis.sentinels:
        agreeing = sum(bool(each.primary) and each.primary == status.redis.primary for each in sentinels)
        state = "running" if agreeing == len(sentinels) else "failing" if agreeing else "down"
        note = f"{agreeing}/{len(sentinels)} say that {status.redis.primary} is the primary" if agreeing else "none answers"
        yield Component(name="sentinels", state=state, where=status.redis.primary, note=note)


def _role(server: RedisServer, primary: str) -> str:
    if server.state == "primary":
        return "primary" if server.address == primary else "takes itself for the primary, and the Sentinels do not"
    if server.state == "down":
        return ""
    if not server.linked:
        return "replica, hears nothing of its primary"
    behind = "unknown how far" if server.behind_bytes is None else f"{server.behind_bytes} bytes"
    return f"replica, {behind} behind, heard {server.silent_seconds} s ago"


def _turns(status: ClusterStatus, now: float) -> Component:
    if status.redis.live_turns is None:
        return Component(name="turns", state="unknown", note="no Redis primary answers")
    last = status.redis.last_takeover
    note = _takeover(last, now) if last else "no takeover yet"
    return Component(name="turns", state=f"{status.redis.live_turns} live", note=note)


def _takeover(last: LastTakeover, now: float) -> str:
    seconds = max(0.0, now - last.at_ms / 1000)
    ago = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
    where = f"from {last.from_node} to {last.to_node}" if last.from_node != last.to_node else f"within {last.to_node}"
    return f"last takeover {ago} ago, pool {last.pool}, {where}"
