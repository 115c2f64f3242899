"""Real parts for shared stores: moto's S3 server as a separate process, and a proxy that injects faults."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, NamedTuple

import pytest

_SERVER = """
import logging, sys, threading
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
application, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()
def answered(environ, start_response):
    with one_at_a_time:  # moto looks at a condition and writes in two steps, in which a bucket does both in one
        return list(application(environ, start_response))
run_simple("127.0.0.1", int(sys.argv[1]), answered, threaded=True)
"""


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """The address of moto's server, started here; a test without it is skipped."""
    with moto_process() as (address, _):
        yield address


@contextlib.contextmanager
def moto_process() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start the server; yield its address and its process."""
    for package in ("obstore", "moto", "flask", "flask_cors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(
                f"stores in a bucket are tested with obstore and moto[s3] with flask and flask-cors: no {package}"
            )
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    fake = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "MOTO_S3_DEFAULT_MAX_KEYS": "1000"}
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(port)], env={**os.environ, **fake})
    try:
        limit = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "moto's server has ended"
                assert time.monotonic() < limit, "moto's server does not answer"
                time.sleep(0.1)
        yield address, server
    finally:
        server.kill()
        server.wait()


def made_bucket(endpoint: str, name: str) -> str:
    """A new, empty bucket; its name."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=60).close()
    return name


def environment(endpoint: str) -> dict[str, str]:
    """Return the options with which obstore finds a server at that address."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key-of-a-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
        "AWS_REGION": "us-east-1",
    }


class _QuietServer(ThreadingHTTPServer):
    """Tells nothing of connections that clients break off."""

    def handle_error(self, *_: object) -> None:
        pass


class Faults:
    """A proxy before a server, which does harm to a share of the requests, and counts what it did.

    Args:
        endpoint: of the server.
        rates: share of requests by kind of fault: ``busy`` (500 or 503 in place of an answer), ``refused`` (the
            connection is closed before the request is passed on), ``cut`` (the request is carried out and its answer
            broken off half way), ``unanswered`` (carried out, and closed without an answer after `silence` seconds),
            ``slow`` (two seconds late).
        seed: of what is drawn.
    """

    def __init__(self, endpoint: str, rates: Mapping[str, float], *, seed: int = 0, silence: float = 3.0) -> None:
        self.counts: Counter[str] = Counter()
        self.rates, self.away = dict(rates), False
        self._endpoint, self._silence = endpoint, silence
        self._draw, self._guard = random.Random(seed), threading.Lock()
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def injected(self) -> int:
        """Faults so far."""
        return sum(count for kind, count in self.counts.items() if kind != "requests")

    def _fault(self) -> str:
        with self._guard:
            self.counts["requests"] += 1
            kind, drawn = "", self._draw.random()
            if self.away:
                kind = "refused"
            for name, rate in self.rates.items():
                if not kind and drawn < rate:
                    kind = name
                drawn -= rate
            if kind:
                self.counts[kind] += 1
            return kind

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits for 40 ms

            def log_message(self, *_: object) -> None:
                pass

            def passed(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kind = proxy._fault()
                if kind == "slow":
                    time.sleep(2)
                if kind == "refused":
                    self.connection.close()
                    self.close_connection = True
                    return
                if kind in ("busy", "denied"):
                    self.send_response(403 if kind == "denied" else proxy._draw.choice((500, 503)))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status, headers, data = self.forward(body)
                if kind == "unanswered":
                    time.sleep(proxy._silence)
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                        self.send_header(name, value)
                length = {name.lower(): value for name, value in headers}.get("content-length")
                empty = self.command == "HEAD" or status in (204, 304)
                self.send_header("Content-Length", length if empty and length else str(len(data)))
                if kind == "cut":
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.end_headers()
                self.wfile.write(data)

            def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                port = int(proxy._endpoint.rpartition(":")[2])
                server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    server.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = server.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                finally:
                    server.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = passed

        return Handler


@contextlib.contextmanager
def faults_apart(endpoint: str, rates: Mapping[str, float], *, seed: int) -> Iterator[FaultsApart]:
    """`Faults` in a separate process, for a process that forks and may have no threads."""
    words = [sys.executable, "-c", _APART, endpoint, json.dumps(dict(rates)), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        yield FaultsApart(process.stdout.readline().strip(), process.stdin, process.stdout)
    finally:
        process.kill()
        process.communicate()


_APART = """
import json, sys
from buckets import Faults
with Faults(sys.argv[1], json.loads(sys.argv[2]), seed=int(sys.argv[3]), silence=0.5) as faults:
    print(faults.endpoint, flush=True)
    for line in sys.stdin:
        print(json.dumps(faults.counts), flush=True)
"""


class FaultsApart(NamedTuple):
    """The address of such a proxy, and how to send requests to it."""

    endpoint: str
    ask: IO[str]
    answer: IO[str]

    @property
    def counts(self) -> Counter[str]:
        """Return the counts of injected faults so far."""
        self.ask.write("counts\n")
        self.ask.flush()
        return Counter(json.loads(self.answer.readline()))
