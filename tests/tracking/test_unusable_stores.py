"""Tracking stores that answer and cannot be used: told before the work, with the remedy (F15, A2)."""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_mlflow import FakeMlflow, fake_mlflow
from samples import everything, few_results

from neulig_ray.errors import InputError, StageError
from neulig_ray.tracking import database
from neulig_ray.tracking.mlflow import Tracker
from neulig_ray.tracking.store import check, client, local_uri


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's own database, made once: its schema takes seconds."""
    folder = tmp_path_factory.mktemp("database")
    client(local_uri(folder)[0])
    return folder / "mlflow.db"


@pytest.fixture
def path(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def server() -> Iterator[FakeMlflow]:
    with fake_mlflow() as fake:
        yield fake


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as opened, opened:
        for statement in statements:
            opened.execute(statement)


def revision(number: str) -> Callable[[Path], None]:
    return lambda path: sql(path, f"update alembic_version set version_num='{number}'")


def overwritten(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2000:60_000] = b"\x5a" * 58_000
    path.write_bytes(data)


def another_programs(path: Path) -> None:
    path.unlink()
    sql(path, "create table alembic_version (version_num text)", "create table dags (id text)")


def replaced(by: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        by(path)

    return replace


DATABASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "F15-unknown-revision": (revision("ffffffffffff"), r"newer one made it.*pip install 'mlflow>\d"),
    "older-revision": (revision("f5a4f2784254"), r"mlflow db upgrade 'sqlite:////.*/mlflow\.db'"),
    "no-revision": (lambda path: sql(path, "delete from alembic_version"), "schema of no version"),
    "two-revisions": (
        lambda path: sql(path, "insert into alembic_version values ('ffffffffffff')"),
        "does not know",
    ),
    "no-version-table": (lambda path: sql(path, "drop table alembic_version"), "schema of no version"),
    "another-program's": (another_programs, r"database of something else .*alembic_version, dags"),
    "corrupt": (overwritten, "damaged"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:300_000]), "damaged"),
    "text": (lambda path: path.write_text("not a database at all"), "no sqlite database"),
    "folder": (replaced(Path.mkdir), "is a folder"),
    "pipe": (replaced(os.mkfifo), "a device or a pipe"),
}


@pytest.mark.parametrize(("spoil", "told"), DATABASES.values(), ids=DATABASES.keys())
def test_a_database_that_cannot_be_used_is_told_in_milliseconds(
    path: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    uri = local_uri(path.parent)[0]
    check(uri)
    spoil(path)
    started = time.process_time()
    with pytest.raises(InputError, match=told) as caught:
        check(uri)
    assert str(path) in str(caught.value)
    assert "is away" not in str(caught.value)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("held", ["immediate", "exclusive"])
def test_a_locked_database(path: Path, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.3)
    uri = local_uri(path.parent)[0]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"begin {held}")
        with pytest.raises(InputError, match=r"locked by another process.*fuser"):
            check(uri)
    check(uri)


def test_a_lock_that_is_let_go_is_waited_for(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("begin exclusive")
    threading.Timer(0.4, other.rollback).start()
    check(local_uri(path.parent)[0])
    other.close()


@pytest.mark.parametrize("what", ["database", "folder", "folder-of-a-new-one"])
def test_what_may_not_be_written(path: Path, what: str) -> None:
    """As another user than root, whom permissions do not stop: in a child, which ends without pytest."""
    path.chmod(0o444 if what == "database" else 0o666)
    if what == "folder-of-a-new-one":
        path.unlink()
    path.parent.chmod(0o777 if what == "database" else 0o555)
    for folder in path.parents[1:]:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            check(local_uri(path.parent)[0])
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    told = os.read(read, 10_000).decode()
    os.close(read)
    path.parent.chmod(0o755)
    assert told.startswith("InputError: MLflow's database")
    assert "written" in told
    assert "permissions" in told or "another place" in told


def test_an_empty_file_and_a_new_place_are_fine(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    check(local_uri(tmp_path)[0])
    check(local_uri(tmp_path / "not" / "there")[0])


def test_a_file_in_place_of_the_artifacts_folder(path: Path) -> None:
    uri, location = local_uri(path.parent)
    (path.parent / "mlflow-artifacts").write_text("in the way")
    with pytest.raises(InputError, match=r"mlflow-artifacts'.*is a file: move it away"):
        Tracker(uri, "demo", location).check()


def test_a_deleted_experiment_comes_back(path: Path) -> None:
    uri, location = local_uri(path.parent)
    known = client(uri)
    known.delete_experiment(known.create_experiment("demo", artifact_location=location))
    tracker = Tracker(uri, "demo", location)
    tracker.check()
    assert tracker.record(few_results().head(0)).runs == 0
    assert known.get_experiment_by_name("demo").lifecycle_stage == "active"


def test_a_database_that_is_spoiled_meanwhile_is_not_said_to_be_away(path: Path) -> None:
    revision("ffffffffffff")(path)
    with pytest.raises(InputError, match="does not know"):
        Tracker(*_demo(path)).record(few_results().head(0))


def _demo(path: Path) -> tuple[str, str, str]:
    uri, location = local_uri(path.parent)
    return uri, "demo", location


# Addresses ---------------------------------------------------------------------

ADDRESSES = {
    "postgresql": ("postgresql://u:hidden@127.0.0.1/x", "pip install 'psycopg"),
    "unknown-scheme": ("nowhere://host/x", "nowhere"),
    "file": ("file:///tmp/mlruns", "no longer records into folders"),
    "no-scheme": ("localhost:5000", "A server is http://localhost:5000"),
    "no-scheme-number": ("127.0.0.1:5000", "A server is http://127.0.0.1:5000"),
    "in-memory": ("sqlite://", "names no file"),
    "in-memory-named": ("sqlite:///:memory:", "names no file"),
    "no-host": ("http://", "names no host"),
    "bad-port": ("http://127.0.0.1:port", "Port could not be cast"),
}


@pytest.mark.parametrize(("uri", "told"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_addresses_that_can_never_work(uri: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        check(uri)
    assert "hidden" not in str(caught.value)


# Servers ---------------------------------------------------------------------

HTML = b"<!doctype html><title>Welcome</title>"
SERVERS: dict[str, tuple[dict[str, Any], str]] = {
    "not-found": ({"answer": lambda path: (404, b"nothing here")}, "cannot be used"),
    "html": ({"health": (200, HTML), "version": HTML, "answer": lambda path: (200, HTML)}, "cannot be used"),
    "invalid-host": ({"health": (403, b"Invalid Host header")}, r"--allowed-hosts 127\.0\.0\.1:\d+"),
    "user": ({"answer": lambda path: (401, b"no")}, "Set MLFLOW_TRACKING_USERNAME and"),
    "too-old": ({"version": b"1.14.0"}, "version 1.14.0, too old"),
    "may-not-make": (
        {"answer": lambda path: (403, b"no") if "get-by-name" in path else None},
        "Set MLFLOW_TRACKING_USERNAME and",
    ),
}


@pytest.mark.parametrize(("change", "told"), SERVERS.values(), ids=SERVERS.keys())
def test_servers_that_answer_and_cannot_be_used(
    server: FakeMlflow, change: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Tracker(server.uri, "demo").check()
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(InputError, match=told):
        Tracker(server.uri, "demo").check()


def test_variables_are_named_where_they_are_wrong(
    server: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    server.answer = lambda path: (401, b"no")
    with pytest.raises(
        InputError, match="Correct MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_USERNAME"
    ) as e:
        check(server.uri)
    assert "hidden" not in str(e.value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "many")
    with pytest.raises(InputError, match="Correct or unset MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        check(server.uri)


def test_something_that_speaks_no_http_is_told() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            other, _ = listening.accept()
            other.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            other.close()

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(InputError, match="no MLflow server answers"):
            check(f"http://127.0.0.1:{listening.getsockname()[1]}")


def test_a_user_in_the_address_reaches_the_server_and_no_message(server: FakeMlflow) -> None:
    uri = server.uri.replace("//", "//somebody:hidden@")
    check(uri)
    assert server.authorisations == {"Basic c29tZWJvZHk6aGlkZGVu"}
    server.health = (403, b"Invalid Host header")
    with pytest.raises(InputError) as caught:
        check(uri)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
def test_what_a_server_refuses_is_not_said_to_be_away(
    server: FakeMlflow, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A StageError is tried again; what the server will always refuse is not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.answer = lambda path: (status, b"no") if "runs/search" in path else None
    with pytest.raises(StageError if status >= 500 else InputError):
        Tracker(server.uri, "demo").record(few_results().head(0))


# Where a server has artifacts written ---------------------------------------------------------------------

LOCAL = (
    "file:///etc",
    "/etc",
    "FILE:///etc",
    " file:///etc",
    "etc",
    "runs:/r/x",
    "models:/m/1",
    "C:\\etc",
    "",
)


@pytest.mark.parametrize("location", LOCAL)
def test_a_server_does_not_choose_local_files(server: FakeMlflow, location: str) -> None:
    """A2"""
    server.experiment_location = location
    with pytest.raises(InputError, match="--serve-artifacts"):
        Tracker(server.uri, "demo").check()


@pytest.mark.parametrize("scheme", ["file://", ""], ids=["A2-file", "path"])
def test_a_server_that_changes_its_mind_gets_nothing_written(
    server: FakeMlflow, tmp_path: Path, scheme: str
) -> None:
    tracker = Tracker(server.uri, "demo")
    tracker.check()
    server.run_location = f"{scheme}{tmp_path}/chosen"
    with pytest.raises(InputError, match="--serve-artifacts"):
        tracker.record(**everything(few_results()))
    assert not (tmp_path / "chosen").exists()


def test_artifacts_go_through_the_server_otherwise(server: FakeMlflow) -> None:
    tracker = Tracker(server.uri, "demo")
    assert tracker.record(**everything(few_results())).written > 0
    assert any("mlflow-artifacts/artifacts/1/r/artifacts" in call for call in server.calls)
