"""A small server that speaks as much of MLflow's REST API as the tracker asks for, and lies where told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeMlflow:
    """`answer`: path -> status and body instead of its own; the locations are where artifacts are to go."""

    def __init__(self) -> None:
        self.experiment_location = "mlflow-artifacts:/1"
        self.run_location = "mlflow-artifacts:/1/r/artifacts"
        self.health: tuple[int, bytes] = (200, b"OK")
        self.version = b"3.13.0"
        self.answer: Callable[[str], tuple[int, bytes] | None] = lambda path: None
        self.calls: list[str] = []
        self.authorisations: set[str] = set()
        self.port = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def respond(self, path: str) -> tuple[int, bytes]:
        self.calls.append(path)
        if path == "/health":
            return self.health
        if path == "/version":
            return 200, self.version
        if (told := self.answer(path)) is not None:
            return told
        found = next((made for part, made in self._known().items() if part in path), None)
        return (404, b"{}") if found is None else (200, json.dumps(found).encode())

    def _known(self) -> dict[str, Any]:
        experiment = {
            "experiment_id": "1",
            "name": "demo",
            "artifact_location": self.experiment_location,
            "lifecycle_stage": "active",
        }
        info = {
            "run_id": "r",
            "run_uuid": "r",
            "experiment_id": "1",
            "status": "RUNNING",
            "start_time": 1,
            "artifact_uri": self.run_location,
            "lifecycle_stage": "active",
        }
        run = {"info": info, "data": {"tags": []}}
        return {
            "experiments/search": {"experiments": [experiment]},
            "experiments/get": {"experiment": experiment},
            "experiments/create": {"experiment_id": "1"},
            "runs/search": {"runs": []},
            "runs/create": {"run": run},
            "runs/get": {"run": run},
            "runs/log-batch": {},
            "runs/update": {"run_info": info},
            "mlflow-artifacts/artifacts": {},
        }


@contextmanager
def fake_mlflow() -> Iterator[FakeMlflow]:
    fake = FakeMlflow()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if given := self.headers.get("Authorization"):
                fake.authorisations.add(given)
            status, body = fake.respond(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield fake
        server.shutdown()
