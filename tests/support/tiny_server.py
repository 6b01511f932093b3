"""A tiny HTTP server in a process of its own, to be frozen and killed: `python tiny_server.py HOST PORT`.

Answers with its own address: a GET of `/` at once, of `/slow` as a stream of 20 lines in two seconds; a POST after one second,
with the `Idempotency-Key` it came with.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

LINES = 20


class TinyServer:
    """One such server, seen from outside."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, self.host, str(self.port)], stdout=self._said)
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"http://{self.host}:{self.port}/", timeout=1, trust_env=False)
                return
            except httpx.TransportError:
                assert self._process.poll() is None, f"no server on {self.host}:{self.port}"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.02)

    def asked_to_post(self) -> list[str]:
        """The idempotency keys of all that was posted here so far, answered or not."""
        return os.pread(self._said.fileno(), 1_000_000, 0).decode().split()

    def freeze(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()  # works on a frozen one, too
        self._process.wait(10)

    def close(self) -> None:
        self.kill()
        self._said.close()


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True  # beside one that listens on all addresses

    def handle_error(self, *_: object) -> None:
        """Say nothing: HAProxy cuts connections, and its checks do not wait for the answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        here = str(self.server.server_address[0]).encode()
        if self.path == "/slow":
            self._begin("Transfer-Encoding", "chunked")
            for _ in range(LINES):
                self.wfile.write(b"%x\r\n%s\n\r\n" % (len(here) + 1, here))
                time.sleep(2 / LINES)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._begin("Content-Length", str(len(here)))
            self.wfile.write(here)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        # In one piece: `print` writes the line and its end one after the other, and another thread's may come between.
        os.write(sys.stdout.fileno(), f"{self.headers['Idempotency-Key']}\n".encode())
        time.sleep(1)
        answer = f"{self.server.server_address[0]!s} {self.headers['Idempotency-Key']}".encode()
        self._begin("Content-Length", str(len(answer)))
        self.wfile.write(answer)

    def _begin(self, name: str, value: str) -> None:
        self.send_response(200)
        self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    _Server((sys.argv[1], int(sys.argv[2])), _Handler).serve_forever()
