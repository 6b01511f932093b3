"""A balancer's configuration as text: a template of `templates/`, filled in with the nodes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cluster.balancer.backends import Backend

BODY_BYTES = 512 * 1024
"""Largest body of the API (`serve_app.api.body_limit`): what must be held in order to be sent again."""
BUFFER_BYTES = BODY_BYTES + 64 * 1024
"""HAProxy holds a request with its headers in one buffer."""

TRIES_PER_NODE = 3
"""With two of four nodes dead and not yet known to be, a try meets a dead one with a chance of 1/3: twelve do once in 10⁶."""

CARETAKER = "Aurora-Caretaker"
"""Header: the node whose caretaker sent this on."""


@dataclass(frozen=True)
class Front:
    """Where a balancer listens. `certificate` and `key` are PEM files; without them it speaks plain HTTP.

    `caretaker` is the name of the node whose own port this is (`cluster.node.caretaker`): its HAProxy marks what it sends on, and
    refuses what another one has marked, as two that send to each other would do so for ever.
    """

    port: int
    certificate: Path | None = None
    key: Path | None = None
    caretaker: str = ""


def haproxy(backends: Sequence[Backend], front: Front) -> str:
    """Return the configuration of HAProxy; `front.certificate` holds the key as well, as HAProxy wants it."""
    tls, upgrade = (
        f"bind :{front.port} ssl crt {front.certificate} alpn h2,http/1.1",
        "http-request redirect scheme https unless { ssl_fc }",
    )
    if front.certificate:
        binds = [tls]
    elif front.caretaker:
        binds = [
            f"bind :{front.port}",
            f"http-request deny deny_status 503 if {{ req.hdr({CARETAKER}) -m found }}",
            f"http-request set-header {CARETAKER} {front.caretaker}",
        ]
    else:
        ready = "bind :443 ssl crt /etc/haproxy/aurora.pem alpn h2,http/1.1"
        binds = [
            f"bind :{front.port}",
            "# TLS: uncomment both; aurora.pem holds the certificate and, after it, its key.",
            f"# {ready}",
            f"# {upgrade}",
        ]
    servers = [f"server {backend.name} {backend.address}" for backend in backends]
    return _filled(
        "haproxy.cfg",
        BINDS=_lines(binds, 4),
        SERVERS=_lines(servers, 4),
        UNCHECKED=_lines([f"server {backend.name}.unchecked {backend.address} no-check backup" for backend in backends], 4),
        CHECK_HEADERS=f" hdr {CARETAKER} {front.caretaker}" if front.caretaker else "",
        RETRIES=str(TRIES_PER_NODE * len(backends)),
        BUFFER_BYTES=str(BUFFER_BYTES),
    )


def nginx(backends: Sequence[Backend], front: Front) -> str:
    """Return the configuration of nginx. It asks no node how it is: who drains now is left out here."""
    if front.certificate:
        listens = _nginx_tls(front.port, str(front.certificate), str(front.key))
    else:
        ready = _nginx_tls(443, "/etc/nginx/aurora.crt", "/etc/nginx/aurora.key")
        listens = [
            f"listen {front.port};",
            "# TLS: uncomment, with the paths of your certificate and its key.",
            *(f"# {line}" for line in ready),
        ]
    servers = [
        f"server {backend.address} {'down' if backend.draining else 'max_fails=2 fail_timeout=5s'}; # {backend.name}"
        for backend in backends
    ]
    return _filled(
        "nginx.conf",
        LISTENS=_lines(listens, 8),
        SERVERS=_lines(servers, 8),
        TRIES=str(max(2, len(backends))),
        BODY_BYTES=str(BODY_BYTES),
    )


def _nginx_tls(port: int, certificate: str, key: str) -> list[str]:
    return [f"listen {port} ssl http2;", f"ssl_certificate {certificate};", f"ssl_certificate_key {key};"]


def caddy(backends: Sequence[Backend], front: Front) -> str:
    """Return the configuration of Caddy."""
    if front.certificate:
        site, tls = f"https://:{front.port}", [f"tls {front.certificate} {front.key}"]
    else:
        site = f"http://:{front.port}"
        tls = [
            "# TLS: write the public name of this site in place of the address above, like chat.example.org, and Caddy gets",
            "# its certificate by itself; or write https://:443 there, and uncomment:",
            "# tls /etc/caddy/aurora.crt /etc/caddy/aurora.key",
        ]
    return _filled(
        "Caddyfile", SITE=site, TLS="\n".join(f"\t{line}" for line in tls), ADDRESSES=" ".join(b.address for b in backends)
    )


def _lines(lines: Sequence[str], indent: int) -> str:
    return "\n".join(f"{' ' * indent}{line}" for line in lines)


def _filled(name: str, **values: str) -> str:
    template = (files("cluster.balancer") / "templates" / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda marker: values[marker[1]], template)
