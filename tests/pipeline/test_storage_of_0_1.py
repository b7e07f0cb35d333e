"""A storage and an MLflow database of 0.1 (commit 4440cd1) are used as they are, or it is told why not.

`storage_of_0_1.tar.xz` is what `neulig run smallest` left, less what a repeated run does not read: images,
towers, embeddings of other splits than val, MLflow's artifacts, the report. Paths of the machine that made it
are replaced. The experiment is 0.1's too.
"""

import contextlib
import json
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY
from without_ray import no_ray_runs

from neulig_ray.cli.experiments import load_file
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError
from neulig_ray.pipeline import earlier_names
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.stages import embeddings
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking.database import check_database

Neulig = Callable[..., tuple[int, str, str]]
KEPT = Path(__file__).parent / "storage_of_0_1.tar.xz"
SMALLEST = REPOSITORY / "tests/experiment/experiments_of_0_1/smallest.py"
HASH = "0.1.0 (226ec448), commit 4440cd1a8434"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The storage, as if it had been made where it lies: MLflow writes down where its artifacts go."""
    with tarfile.open(KEPT, "r:xz") as archive:
        archive.extractall(tmp_path / "storage", filter="data")
    with contextlib.closing(sqlite3.connect(tmp_path / "storage/mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, '/storage-of-0.1', ?)",
                (str(tmp_path / "storage"),),
            )
    return tmp_path / "storage"


def plan_of_smallest() -> Plan:
    return make_plan(load_file(str(SMALLEST)).experiment)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def needs_the_schema(storage: Path) -> None:
    """Skips where another MLflow is installed than made the database."""
    try:
        check_database(storage / "mlflow.db")
    except InputError as error:
        if "schema" not in str(error):
            raise
        pytest.skip("the kept database is of MLflow 3.17: pip install -c constraints.txt mlflow")


OTHERS = ("zeroshot", "expert", "average", "ensemble-embedding", "ensemble-logit", "ensemble-vote")


def test_what_is_no_ligands_is_there_already(storage: Path) -> None:
    """Ligands are trained another way since: their trials, and what is measured with them, are made anew."""
    opened = Storage(str(storage))
    missing = {
        stage: [a.label for a in found if not opened.exists(a)]
        for stage, found in plan_of_smallest().artifacts().items()
    }
    anew = {"search", "ligands", "models"}
    assert all(missing[stage] for stage in anew)
    assert {label.split(".")[0] for label in missing.pop("evaluations")} == {"ligand", "hard-routing"}
    assert not any(found for stage, found in missing.items() if stage not in anew)


def test_a_command_without_ligands_has_nothing_to_make(
    storage: Path, neulig: Neulig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_the_schema(storage)
    started = no_ray_runs(monkeypatch)
    rows = pd.read_parquet(storage / "smallest/results.parquet")
    artifacts = contents(storage / "artifacts")
    command = ("run", SMALLEST, "--storage", storage, "--methods", *OTHERS)
    status, table, _ = neulig(*command)
    assert status == 0
    assert started == []
    assert contents(storage / "artifacts") == artifacts
    again = pd.read_parquet(storage / "smallest/results.parquet")
    kept = rows[rows["method"].isin(OTHERS)].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[rows.columns], kept)
    database = (storage / "mlflow.db").read_bytes()
    status, same, told = neulig(*command)
    assert (status, same) == (0, table)
    assert ", 0 of them written" in told
    assert (storage / "mlflow.db").read_bytes() == database


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that embeds differently: 6 embeddings, 6 trials, 2 ligands and 25 evaluations."""
    monkeypatch.setattr(embeddings, "VERSION", embeddings.VERSION + 1)


def lines_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if "gives no more" in line]


@pytest.mark.usefixtures("renamed")
def test_names_that_no_longer_occur_are_told_by_the_dry_run(storage: Path, neulig: Neulig) -> None:
    status, output, _ = neulig("run", SMALLEST, "--storage", storage, "--dry-run")
    (line,) = lines_of(output)
    assert status == 0
    assert line.startswith(f"39 artifacts of smallest have names of neulig-ray {HASH}, which")
    assert str(storage / "smallest/history/e25d1141d11ca71f") in line
    assert line.endswith(f"run `neulig storage prune --storage {storage}`")


@pytest.mark.usefixtures("renamed")
def test_names_that_no_longer_occur_are_told_before_the_run(
    storage: Path, neulig: Neulig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(self: ClusterSession) -> None:
        raise InputError("this is far enough")

    monkeypatch.setattr(ClusterSession, "check", check)
    status, _, told = neulig("run", SMALLEST, "--storage", storage)
    assert status == 2
    assert len(lines_of(told)) == 1


@pytest.mark.usefixtures("renamed")
def test_the_remedy_that_is_told_frees_their_space(storage: Path, neulig: Neulig) -> None:
    results = [storage / "smallest" / name for name in ("results.json", "results.parquet")]
    about = json.loads(results[0].read_text())
    plan = plan_of_smallest()
    about["artifacts"] = [a.fingerprint for found in plan.artifacts().values() for a in found]
    results[0].write_text(json.dumps(about))  # the new version's run has ended
    assert "nothing to remove" in neulig("storage", "prune", "--yes", "--storage", storage)[1]
    for file in (storage / "smallest/history/e25d1141d11ca71f").iterdir():
        file.unlink()
    assert "removed 39 artifacts" in neulig("storage", "prune", "--yes", "--storage", storage)[1]


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--methods", "expert", "ligand", "ties"], 14),  # those of methods come and go with them
        (["--cluster.max-failures", "1"], 39),
        (["--seed", "1"], 0),
        (["--ligand.epochs", "4"], 0),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
def test_only_the_same_settings_are_compared(
    storage: Path, neulig: Neulig, flags: list[str], count: int
) -> None:
    status, output, _ = neulig("run", SMALLEST, "--storage", storage, "--dry-run", *flags)
    assert status == 0
    assert [line.split()[0] for line in lines_of(output)] == [str(count)] * bool(count)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["versions"].update({"neulig-ray": earlier_names.code_version()}),
        lambda about: about.update(artifacts=[]),
        lambda about: about.update(artifacts=7),
        lambda about: about.update(configuration=[]),
        lambda about: about.update(versions="0.1.0"),
        lambda about: about.clear(),
    ],
    ids=["this-code", "none", "no-list", "no-configuration", "no-versions", "empty"],
)
@pytest.mark.usefixtures("renamed")
def test_results_that_do_not_tell_are_passed_over(
    storage: Path, change: Callable[[dict[str, object]], object]
) -> None:
    file = storage / "smallest/results.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    assert earlier_names.earlier_names(plan_of_smallest(), Storage(str(storage))) is None


@pytest.mark.usefixtures("renamed")
def test_a_remote_storage_is_asked_twice_at_most(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    opened, listed = Storage._open, Storage.listing
    monkeypatch.setattr(Storage, "_open", lambda self, path: asked.append(path) or opened(self, path))
    monkeypatch.setattr(Storage, "listing", lambda self, path: asked.append(path) or listed(self, path))
    assert earlier_names.earlier_names(plan_of_smallest(), Storage(str(storage)))
    assert asked == ["smallest/results.json", "artifacts"]


def test_a_storage_of_nobody_tells_nothing(tmp_path: Path) -> None:
    assert earlier_names.earlier_names(plan_of_smallest(), Storage(str(tmp_path / "none"))) is None
