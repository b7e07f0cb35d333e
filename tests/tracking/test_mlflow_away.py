"""An MLflow server that goes away and comes back: results stay, records come later, each once."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command
from disturbed import SMALLEST
from servers import Server, mlflow_server

from neulig_ray.cli.experiments import load
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.storage.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as server:
        server.start()
        yield server


def rows(folder: Path, query: str) -> list[tuple[str, ...]]:
    with contextlib.suppress(sqlite3.Error):
        place = f"file:{folder}/server/mlflow.db?mode=ro"
        with contextlib.closing(sqlite3.connect(place, uri=True, timeout=5)) as database:
            return database.execute(query).fetchall()
    return []


def finished(folder: Path) -> int:
    return len(rows(folder, "select run_uuid from runs where status = 'FINISHED'"))


def test_a_server_that_goes_away(
    server: Server, copied_storage: Path, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    """Away before anything is recorded; then there, away in the middle of the recording, and back.

    A claim on an evaluation that is not there yet holds the run while the server is killed.
    """
    storage = Storage(str(copied_storage))
    experiment, _ = load(SMALLEST)
    last = make_plan(experiment).evaluations[-1].job.artifact
    storage.delete_tree(last.path)
    run = ["run", SMALLEST, "--storage", copied_storage, "--tracking-uri", server.uri]

    with storage.claim(last, wait=False) as granted:
        assert granted
        command = start_command(*run)
        command.wait_until(lambda: "evaluations" in command.output and "waits for 1" in command.output, "it")
        server.kill()
    assert command.wait(400) == 1, "done, but not recorded"
    assert "is away, again in 5 s" in command.output
    told = " ".join(command.output.split())
    assert "the same command again records what is missing" in told
    assert "Traceback" not in told
    assert "digits" in told, "the table is printed"
    for name in ("results.parquet", "report.html"):
        assert (copied_storage / "smallest" / name).exists()
    assert finished(tmp_path) == 0

    server.start()
    command = start_command(*run)
    command.wait_until(lambda: finished(tmp_path) >= 3, "three recorded runs")
    server.kill()
    before = finished(tmp_path)
    command.wait_until(lambda: "is away, again in" in command.output, "its notice")
    server.start()
    assert command.wait(300) == 0, command.output
    keys = rows(tmp_path, "select value from tags where key = 'neulig.key'")
    assert len(keys) > before >= 3
    assert set(Counter(keys).values()) == {1}, "each run once"
    assert rows(tmp_path, "select distinct status from runs") == [("FINISHED",)]
    points = rows(tmp_path, "select run_uuid, key, step from metrics")
    assert set(Counter(points).values()) == {1}, "each point of each curve once"

    again = start_command(*run)
    assert again.wait(200) == 0
    assert ", 0 of them written" in again.output


def test_a_server_that_is_away_at_the_start_is_told_before_anything_begins(
    server: Server, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    server.kill()
    command = start_command("run", SMALLEST, "--storage", tmp_path / "s", "--tracking-uri", server.uri)
    assert command.wait(100) == 2
    assert "no MLflow server answers" in command.output
    assert not (tmp_path / "s/artifacts").exists()
