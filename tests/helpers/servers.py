"""Servers on loopback that tests start, stop and start again: MLflow's, and moto's for S3."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


class Server:
    """A command with a port of its own, in a session of its own."""

    def __init__(self, command: list[str], port: int, health: str, log: Path) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._command = command
        self._health = health
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 180) -> None:
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                self._command, stdout=stream, stderr=stream, start_new_session=True
            )
        until = time.monotonic() + timeout
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.uri + self._health, timeout=5).close()
                return
            time.sleep(0.1)
        pytest.fail(f"{self._command[0]} does not answer:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """At once, with its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """An MLflow server, not started yet, with its database and artifacts in `folder`."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    server = Server(command, port, "/health", folder / "mlflow.log")
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """moto's S3, started, with an empty bucket `bucket`."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Server(command, port, "/moto-api/", folder / "moto.log")
    try:
        server.start()
        urllib.request.urlopen(urllib.request.Request(f"{server.uri}/bucket", method="PUT"), timeout=10)
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
