"""MLflow as a projection of the storage: complete, updated in place, never repeated."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import samples

from neulig_ray.errors import StageError
from neulig_ray.tracking import mlflow as tracking
from neulig_ray.tracking import projection
from neulig_ray.tracking.mlflow import RecordCounts, Tracker
from neulig_ray.tracking.standing import all_stand
from neulig_ray.tracking.store import client, local_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return samples.few_results()


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of a small recording."""
    monkeypatch.setattr("neulig_ray.report.plots.png", lambda figure: b"png")
    monkeypatch.setattr("neulig_ray.report.plots.svg", lambda figure: "<svg/>")
    monkeypatch.setattr("neulig_ray.report.plots.scatter", lambda rows: None)
    monkeypatch.setattr("neulig_ray.report.plots.gaps", lambda rows: None)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that has its schema and nothing else: making one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    client(local_uri(folder)[0])
    return folder / "mlflow.db"


@pytest.fixture
def tracker(empty_store: Path, tmp_path: Path) -> Tracker:
    uri, location = local_uri(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return Tracker(uri, "demo", location)


def runs_of(tracker: Tracker) -> dict[str, Any]:
    """All active runs by key; fails where a key occurs twice."""
    found = client(tracker.uri)
    experiment = found.get_experiment_by_name(tracker.experiment)
    every = found.search_runs([experiment.experiment_id], max_results=5000)
    counted = Counter(run.data.tags["neulig.key"] for run in every)
    assert max(counted.values()) == 1
    return {run.data.tags["neulig.key"]: run for run in every}


def named(tracker: Tracker, name: str) -> Any:
    return next(run for run in runs_of(tracker).values() if run.info.run_name == name)


def files_of(tracker: Tracker, run: Any) -> Path:
    return Path(str(run.info.artifact_uri).removeprefix("file://"))


def test_everything_is_in_the_store(
    tracker: Tracker, results: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = samples.everything(results)
    recorded = tracker.record(**given, artifacts={"extra/note.txt": b"hello"})
    found = runs_of(tracker)
    assert recorded == RecordCounts(len(found), len(found))
    wanted = {run.key: run for run in projection.runs("demo", **given)}
    assert set(found) == set(wanted)
    for key, run in found.items():
        assert run.info.status == "FINISHED"
        last = {name: value for name, value, _ in wanted[key].metrics}
        assert run.data.metrics == pytest.approx(last)
        parent = wanted[key].parent
        assert run.data.tags.get("mlflow.parentRunId") == (found[parent].info.run_id if parent else None)

    parent = named(tracker, "tiny-rn seed-0 n=2")
    for tag in ("arch", "origin", "n", "seed", "neulig.fingerprint", "neulig.key"):
        assert parent.data.tags[tag]
    folder = files_of(tracker, parent)
    assert folder.is_relative_to(local_uri(folder.parents[2])[1].removeprefix("file://"))
    assert (folder / "ligand/sup.safetensors").read_bytes() == b"s" * 4000
    assert (folder / "extra/note.txt").read_bytes() == b"hello"
    assert (folder / "scatter.png").read_bytes().startswith(b"\x89PNG")
    own = pd.read_parquet(folder / "results.parquet")
    assert len(own) == int((results["n"] == 2).sum())

    child = named(tracker, "ligand sup batch-first")
    tags = {"method": "ligand", "options": "{}", "alignment": "sup", "granularity": "batch-first",
            "buffers": "average"}  # fmt: skip
    assert tags.items() <= child.data.tags.items()
    api = client(tracker.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)  # load_table looks nowhere else
    whole = api.load_table(child.info.experiment_id, "combinations.json", [child.info.run_id])
    assert sorted(whole["collaborators"]) == ["digits,letters", "digits,signs", "letters,signs"]
    assert whole["merging/mean"].mean() == pytest.approx(child.data.metrics["merging/mean"], abs=1e-3)
    expert = named(tracker, "expert digits")
    history = api.get_metric_history(expert.info.run_id, "val_accuracy")
    assert [point.step for point in history] == [0, 1, 2]
    trial = next(run for run in found.values() if run.data.tags.get("stage") == "search")
    assert set(trial.data.params) == {"alignment", "learning_rate", "alignment_weight"}


@pytest.mark.usefixtures("no_plots")
class TestRecording:
    def test_the_same_again_writes_nothing(self, tracker: Tracker, results: pd.DataFrame) -> None:
        tracker.record(**samples.everything(results))
        before = runs_of(tracker)
        again = tracker.record(**samples.everything(results))
        assert again == RecordCounts(len(before), 0)
        assert {k: r.info.run_id for k, r in runs_of(tracker).items()} == {
            k: r.info.run_id for k, r in before.items()
        }

    def test_the_same_again_is_found_out_without_mlflow(
        self, tracker: Tracker, results: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tracker.record(**samples.everything(results))
        monkeypatch.setattr("neulig_ray.tracking.store.client", None)
        assert tracker.record(**samples.everything(results)).written == 0
        with pytest.raises(StageError):
            Tracker(tracker.uri, "other", tracker.artifact_location).record(**samples.everything(results))

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = (SELECT min(run_uuid) FROM runs)",
            "UPDATE runs SET status = 'RUNNING' WHERE run_uuid = (SELECT min(run_uuid) FROM runs)",
            "UPDATE tags SET value = '' WHERE key = 'neulig.content' AND run_uuid = "
            "(SELECT min(run_uuid) FROM runs)",
            "DELETE FROM tags WHERE key = 'neulig.key' AND run_uuid = (SELECT min(run_uuid) FROM runs)",
            "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'demo'",
            "UPDATE experiments SET artifact_location = 'file:///elsewhere' WHERE name = 'demo'",
        ],
        ids=["deleted run", "unfinished", "other content", "lost key", "deleted experiment", "moved"],
    )
    def test_what_no_longer_stands_is_asked_of_mlflow(
        self, tracker: Tracker, results: pd.DataFrame, change: str
    ) -> None:
        given = samples.everything(results)
        tracker.record(**given)
        wanted = projection.runs("demo", **given)
        asked = Path(tracker.uri.removeprefix("sqlite:///")), "demo", tracker.artifact_location, wanted
        assert all_stand(*asked)
        with sqlite3.connect(asked[0]) as connection:
            connection.execute(change)
        connection.close()
        assert not all_stand(*asked)

    def test_a_database_of_another_make_is_left_to_mlflow(self, tmp_path: Path) -> None:
        assert not all_stand(tmp_path / "mlflow.db", "demo", None, [])
        (tmp_path / "mlflow.db").write_bytes(b"no database")
        assert not all_stand(tmp_path / "mlflow.db", "demo", None, [])
        (tmp_path / "mlflow.db").unlink()
        with sqlite3.connect(tmp_path / "mlflow.db") as connection:
            connection.execute("CREATE TABLE runs (id INTEGER)")
        connection.close()
        assert not all_stand(tmp_path / "mlflow.db", "demo", None, [])

    def test_a_changed_result_updates_its_runs_in_place(
        self, tracker: Tracker, results: pd.DataFrame
    ) -> None:
        tracker.record(**samples.everything(results))
        before = named(tracker, "ensemble-vote")
        changed = results.copy()
        changed.loc[changed["method"] == "ensemble-vote", "ensembling_accuracy"] = 12.5
        assert tracker.record(**samples.everything(changed)).written == 2
        after = named(tracker, "ensemble-vote")
        assert after.info.run_id == before.info.run_id
        assert after.data.metrics["ensembling/mean"] == 12.5
        (table,) = files_of(tracker, after).glob("combinations.json")
        assert table.read_text().count("12.5") == 3 * 3  # replaced, not appended to

    def test_another_configuration_stands_beside_the_earlier_one(
        self, tracker: Tracker, results: pd.DataFrame
    ) -> None:
        given = samples.everything(results)
        tracker.record(**given)
        (cell,) = given["cells"]
        given["cells"] = [type(cell)(**{**vars(cell), "fingerprint": "another"})]
        first = len(runs_of(tracker))
        tracker.record(**given)
        parents = [r for r in runs_of(tracker).values() if r.info.run_name == "tiny-rn seed-0 n=2"]
        assert len(parents) == 2
        assert len(runs_of(tracker)) == first + 1 + samples.VARIANTS + 4  # experts are the same runs

    @pytest.mark.parametrize("calls", [1, 7, 40, 60])
    def test_an_interruption_is_completed_without_repeats(
        self, tracker: Tracker, results: pd.DataFrame, calls: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The store stops answering after some calls, wherever that is."""

        class Dying:
            def __init__(self, real: Any) -> None:
                self.real, self.left = real, calls

            def __getattr__(self, name: str) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    self.left -= 1
                    if self.left < 0:
                        raise ConnectionError("gone\nwith a long tail")
                    return getattr(self.real, name)(*args, **kwargs)

                return call

        with monkeypatch.context() as patch:
            patch.setattr(tracking.store, "client", lambda uri: Dying(client(uri)))
            with pytest.raises(StageError, match=r"demo.*gone\. Nothing is lost"):
                tracker.record(**samples.everything(results))
        tracker.record(**samples.everything(results))
        found = runs_of(tracker)
        assert len(found) == len(projection.runs("demo", **samples.everything(results)))
        assert {run.info.status for run in found.values()} == {"FINISHED"}
        assert tracker.record(**samples.everything(results)).written == 0

    def test_a_run_made_twice_at_once_is_left_once(self, tracker: Tracker, results: pd.DataFrame) -> None:
        tracker.record(**samples.everything(results))
        run = named(tracker, "ensemble-vote")
        api = client(tracker.uri)
        twin = api.create_run(run.info.experiment_id, tags={"neulig.key": run.data.tags["neulig.key"]})
        api.set_terminated(twin.info.run_id)
        tracker.record(**samples.everything(results))
        assert named(tracker, "ensemble-vote").info.run_id == run.info.run_id

    def test_a_deleted_run_and_a_deleted_experiment_come_back(
        self, tracker: Tracker, results: pd.DataFrame
    ) -> None:
        tracker.record(**samples.everything(results))
        api, run = client(tracker.uri), named(tracker, "ensemble-vote")
        api.delete_run(run.info.run_id)
        assert tracker.record(**samples.everything(results)).written == 1
        api.delete_experiment(run.info.experiment_id)
        tracker.record(**samples.everything(results))
        assert len(runs_of(tracker)) == len(projection.runs("demo", **samples.everything(results)))

    def test_a_copied_storage_never_writes_into_the_first(
        self, tracker: Tracker, results: pd.DataFrame, tmp_path: Path
    ) -> None:
        tracker.record(**samples.everything(results))
        copy = tmp_path / "a copy"
        copy.mkdir()
        (copy / "mlflow.db").write_bytes((tmp_path / "mlflow.db").read_bytes())
        uri, location = local_uri(copy)
        second = Tracker(uri, "demo", location)
        assert second.record(**samples.everything(results)).written == len(runs_of(tracker))
        assert all(str(run.info.artifact_uri).startswith(location) for run in runs_of(second).values())


def test_a_killed_recording_is_completed(empty_store: Path, results: pd.DataFrame, tmp_path: Path) -> None:
    """`kill -9` once some runs are there, then the same recording again."""
    uri, location = local_uri(tmp_path)
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_store.read_bytes())
    program = textwrap.dedent(f"""
        import samples
        from neulig_ray.tracking.mlflow import Tracker
        given = samples.everything(samples.few_results())
        Tracker({uri!r}, "demo", {location!r}).record(**given)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers")}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        while child.poll() is None and _count_runs(database) < 7:
            time.sleep(0.01)
        assert child.poll() is None, "it ended before it could be killed"
    finally:
        child.kill()
        child.wait()
    tracker = Tracker(uri, "demo", location)
    left = len(projection.runs("demo", **samples.everything(results)))
    recorded = tracker.record(**samples.everything(results))
    assert 0 < recorded.written < left
    found = runs_of(tracker)
    assert len(found) == left
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def _count_runs(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as connection:
        return int(connection.execute("select count(*) from runs").fetchone()[0])
