"""How the Aurora of this machine is: one line per component."""

from typing import Any

import httpx

from cluster import redis_server, run_record
from cluster.component import Component
from cluster.failures import LifecycleError
from cluster.pool_status import pool_lines, pools_at
from cluster.processes import belonging_to
from cluster.run_record import RunRecord
from cluster.serve_api import running_replicas
from cluster.settings import Settings
from cluster.up import serve_api


def components(settings: Settings) -> list[Component]:
    """Return every component of the current run, the chat first; nothing if there is no run."""
    record = run_record.load(settings.home)
    if record is None or not (record.processes_alive or _any_alive(record)):
        return []
    return [_chat(record), _redis(record), *_ray(record), *pool_lines(pools_at(record.api_url))]


def is_a_node(settings: Settings) -> bool:
    """Tell whether this machine runs a node of a cluster (`aurora-cli node start`), and no Aurora of its own."""
    return run_record.load(settings.home) is None and bool(belonging_to(settings.home))


def _any_alive(record: RunRecord) -> bool:
    return any(started is not None and started.alive for started in (record.redis, record.ray))


def _chat(record: RunRecord) -> Component:
    url = record.api_url
    try:
        response = httpx.get(f"{url}/", timeout=5, trust_env=False)
        body = response.json()
    except (httpx.TransportError, ValueError):
        return Component(name="chat-backend", state="down", where=url, note="does not answer; see aurora-cli logs chat-backend")
    if response.status_code != httpx.codes.OK or not isinstance(body, dict):
        return Component(name="chat-backend", state="failing", where=url, note=f"answers with {response.status_code}")
    return Component(
        name="chat-backend", state="running", where=url, note=f"node {record.node_name}, engine {body.get('engine', 'unknown')}"
    )


def _redis(record: RunRecord) -> Component:
    where = redis_server.without_password(record.redis_url)
    whose = "ours" if record.redis else "yours (AURORA_REDIS_URL)"
    try:
        version = redis_server.check(record.redis_url)
    except LifecycleError:
        return Component(name="redis", state="down", where=where, note=whose)
    return Component(name="redis", state="running", where=where, note=f"{version}, {whose}")


def _ray(record: RunRecord) -> list[Component]:
    dashboard = record.dashboard_url
    try:
        details = serve_api(record).details()
    except LifecycleError as error:
        return [Component(name="ray", state="down", where=dashboard, note=str(error))]
    lines = [Component(name="ray", state="running", where=dashboard, note=f"{record.versions.get('ray', '')}, the dashboard")]
    for name, application in sorted(details["applications"].items()):
        lines.append(
            Component(name=name, state=application["status"].lower(), where="application", note=_first_line(application))
        )
        for deployment, facts in (application.get("deployments") or {}).items():
            running, wanted = running_replicas(facts)
            others = [replica["state"].lower() for replica in facts["replicas"] if replica["state"] != "RUNNING"]
            note = f"{running}/{wanted} replicas" + (f" ({', '.join(others)})" if others else "")
            lines.append(Component(name=f"{name}/{deployment}", state=facts["status"].lower(), where="deployment", note=note))
    return lines


def _first_line(application: dict[str, Any]) -> str:
    return next(iter(application.get("message", "").splitlines()), "")
