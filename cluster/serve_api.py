"""Serve's REST API on Ray's dashboard: tell it what to run, ask it what runs."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from cluster.failures import LifecycleError

_PATH = "/api/serve/applications/"


class ServeAway(LifecycleError):
    """Serve cannot be asked at the moment; on a busy machine it may be a moment later."""


class ServeApi:
    """The Serve of one running Ray, by its dashboard."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        self._address = address
        self._headers = {"Accept": "application/json", **headers}

    def answers(self) -> bool:
        """Tell whether Ray's dashboard, and with it this API, can be asked."""
        try:
            with self._client(timeout=5.0) as client:
                return client.get("/api/version").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def deploy(self, config: dict[str, Any]) -> None:
        """Make Serve run exactly `config`: applications that it does not name are removed.

        Raises:
            ServeAway: it cannot be reached.
            LifecycleError: it refuses the configuration.
        """
        response = self._call("PUT", json=config, timeout=90.0)
        if response.status_code != httpx.codes.OK:
            raise LifecycleError(f"Serve refuses the configuration: {_last_line(response.text)}")

    def details(self, *, timeout: float = 10.0) -> dict[str, Any]:
        """Return what Serve says of itself: applications, deployments, replicas, proxies.

        Raises:
            ServeAway: it cannot be reached.
            LifecycleError: it answers, but not that.
        """
        response = self._call("GET", timeout=timeout)
        if response.status_code != httpx.codes.OK:
            raise LifecycleError(f"Serve answers with {response.status_code}: {_last_line(response.text)}")
        details: dict[str, Any] = response.json()
        return details

    def wait_until_running(self, names: set[str], *, timeout: float, on_change: Callable[[str], None]) -> None:
        """Wait until the applications run, telling `on_change` how far they are.

        Raises:
            LifecycleError: one failed, or they did not all run in time; says which and why.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                applications = self.details()["applications"]
            except ServeAway:
                if time.monotonic() > deadline:
                    raise
                on_change("Ray's dashboard is slow to answer")
                time.sleep(0.25)
                continue
            waiting = {
                name: applications.get(name, {}) for name in names if applications.get(name, {}).get("status") != "RUNNING"
            }
            if not waiting:
                return
            for name, application in waiting.items():
                if application.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise LifecycleError(f"Application {name!r} failed: {reason_of(application)}")
            on_change(", ".join(f"{name}: {progress_of(application)}" for name, application in sorted(waiting.items())))
            if time.monotonic() > deadline:
                names_and_reasons = "; ".join(
                    f"{name!r}: {reason_of(application)}" for name, application in sorted(waiting.items())
                )
                raise LifecycleError(f"Not running after {timeout:.0f} s: {names_and_reasons}")
            time.sleep(0.25)

    def _call(self, method: str, *, timeout: float, json: dict[str, Any] | None = None) -> httpx.Response:
        try:
            with self._client(timeout=timeout) as client:
                return client.request(method, _PATH, json=json)
        except httpx.TransportError as error:
            raise ServeAway(f"Ray's dashboard at {self._address} does not answer: {error or type(error).__name__}") from error

    def _client(self, *, timeout: float) -> httpx.Client:
        return httpx.Client(base_url=self._address, headers=self._headers, timeout=timeout, trust_env=False)


def running_replicas(deployment: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many replicas of a deployment run, and how many it should have."""
    running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
    return running, deployment["target_num_replicas"]


def progress_of(application: Mapping[str, Any]) -> str:
    """Return how many replicas of an application run, by deployment."""
    deployments = application.get("deployments") or {}
    if not deployments:
        return "loading"
    counts = ((name, *running_replicas(deployment)) for name, deployment in deployments.items())
    return " ".join(f"{name} {running}/{wanted}" for name, running, wanted in counts)


def reason_of(application: Mapping[str, Any]) -> str:
    """Return the last line of the message nearest to the cause: of a deployment that is not healthy, else of the application."""
    for name, deployment in (application.get("deployments") or {}).items():
        if deployment["status"] != "HEALTHY" and deployment.get("message"):
            return f"deployment {name}: {_last_line(deployment['message'])}"
    return _last_line(application.get("message", "")) or str(application.get("status", "not there"))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
