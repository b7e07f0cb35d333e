"""The tracking store: addresses, servers that do not answer, a database that appears whole."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from neulig_ray.errors import InputError
from neulig_ray.tracking import server
from neulig_ray.tracking.mlflow import Tracker
from neulig_ray.tracking.store import check, client, local_uri


@pytest.fixture
def schema_maker(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for MLflow's slow making of a schema; `then` happens once half of it is written."""
    from mlflow.store.tracking import sqlalchemy_store

    behaviour: dict[str, Any] = {"then": lambda: None}

    class Maker:
        engine = Mock()

        def __init__(self, uri: str, artifacts: str) -> None:
            Path(uri.removeprefix("sqlite:///")).write_bytes(b"half a database")
            behaviour["then"]()

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", Maker)
    return behaviour


def test_a_database_appears_whole_or_not_at_all(tmp_path: Path, schema_maker: dict[str, Any]) -> None:
    schema_maker["then"] = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        client(local_uri(tmp_path / "new")[0])
    assert list((tmp_path / "new").iterdir()) == []


def test_two_drivers_make_one_database(tmp_path: Path, schema_maker: dict[str, Any]) -> None:
    path = tmp_path / "mlflow.db"
    schema_maker["then"] = lambda: path.write_bytes(b"the other driver's")
    client(local_uri(tmp_path)[0])
    assert path.read_bytes() == b"the other driver's"
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.db"]


def test_addresses_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri, location = local_uri("my storage")
    assert uri == f"sqlite:///{tmp_path}/my storage/mlflow.db"
    assert location == f"file://{tmp_path}/my%20storage/mlflow-artifacts"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_folders_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"no longer records into folders.*sqlite:"):
        check(uri)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database at all")
    with pytest.raises(InputError, match=r"mlflow\.db.*no sqlite database"):
        check(local_uri(tmp_path)[0])


def test_a_place_for_a_new_database_is_fine(tmp_path: Path) -> None:
    check(local_uri(tmp_path / "not/yet/there")[0])


def test_a_closed_port_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"no MLflow server answers at '{uri}'.*--tracking-uri"):
        Tracker(uri, "demo").check()
    assert time.monotonic() - started < 5


def test_a_server_that_accepts_and_stays_silent_is_told_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert server.PROBE_SECONDS <= 5
    monkeypatch.setattr(server, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(InputError, match=f"no MLflow server answers at '{uri}'"):
            check(uri)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (403, b"Invalid Host header", "--allowed-hosts 127.0.0.1:"),
        (404, b"nothing here", "cannot be used"),
    ],
)
def test_a_server_that_answers_something_else(status: int, body: bytes, told: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=told):
            check(f"http://127.0.0.1:{answering.server_port}")
        answering.shutdown()
