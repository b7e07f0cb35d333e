"""The results of a run: rows of what was measured and of what failed, and their provenance."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neulig_ray.cli.doctor import probe
from neulig_ray.cluster.run_context import Failures
from neulig_ray.experiment.config import Experiment, Search
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.results import read_results, write_results
from neulig_ray.stages.evaluation_jobs import ROWS_FILE
from neulig_ray.stages.evaluations import Evaluation
from neulig_ray.storage.storage import Storage


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(
        Experiment(
            name="rows",
            archs=("tiny-rn",),
            tasks=("digits", "textures"),
            n=(2,),
            seed=3,
            search=Search(trials=2),
        )
    )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def measure(evaluation: Evaluation, storage: Storage) -> None:
    """Commit rows as an evaluation's job does."""
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "num_samples": 10,
            "merging_accuracy": 50.0,
            "ensembling_accuracy": 60.0,
            "seconds": 1.0,
        }
        for task in evaluation.tasks
    ]
    storage.commit(evaluation.job.artifact, {ROWS_FILE: json.dumps(rows).encode()}, {})


def half_failed(plan: Plan, storage: Storage) -> Failures:
    """Everything is measured but what belongs to the ligand `semi`."""
    failures = {}
    for evaluation in plan.evaluations:
        if evaluation.common["alignment"] == "semi":
            failures[evaluation.job.artifact.fingerprint] = "ligand tiny-rn: TrainingDiverged: epoch 1"
        else:
            measure(evaluation, storage)
    return failures


def test_every_evaluation_has_its_rows(plan: Plan, storage: Storage) -> None:
    table, _ = write_results(plan, storage, half_failed(plan, storage))
    assert len(table) == sum(len(e.tasks) for e in plan.evaluations)
    assert set(table["fingerprint"]) == {e.job.artifact.fingerprint for e in plan.evaluations}
    assert set(table["seed"]) == {3}
    assert set(table["protocol"]) == {"standard"}
    assert set(table["split"]) == {"test"}
    zeroshot = table[table.method == "zeroshot"]
    assert set(zeroshot["n"]) == {0}
    assert set(zeroshot["collaborators"]) == {""}
    expert = table[table.method == "expert"]
    assert set(expert["n"]) == {1}
    assert set(zip(expert["collaborators"], expert["task"], strict=True)) == {
        ("digits", "digits"),
        ("textures", "textures"),
    }
    assert set(table[table["n"] == 2]["collaborators"]) == {"digits,textures"}


def test_failed_rows_say_why_and_measure_nothing(plan: Plan, storage: Storage) -> None:
    table, about = write_results(plan, storage, half_failed(plan, storage))
    semi = table[table.alignment == "semi"]
    assert len(semi) == 2 * 8  # seven granularities and hard routing, on two tasks
    assert set(semi["status"]) == {"failed: ligand tiny-rn: TrainingDiverged: epoch 1"}
    assert semi[["merging_accuracy", "ensembling_accuracy", "gap", "kl"]].isna().all(axis=None)
    rest = table[table.alignment != "semi"]
    assert set(rest["status"]) == {"ok"}
    assert set(rest["gap"]) == {10.0}
    assert len(about["failures"]) == 8
    assert all(name.startswith("evaluation ") for name in about["failures"])


def test_the_tables_are_written_as_the_last_and_under_their_fingerprint(plan: Plan, storage: Storage) -> None:
    table, about = write_results(plan, storage, half_failed(plan, storage))
    plain = json.loads(json.dumps(about))
    history = f"rows/history/{about['fingerprint']}"
    for folder in ("rows", history):
        read = pd.read_parquet(io.BytesIO(storage.read(f"{folder}/results.parquet")))
        pd.testing.assert_frame_equal(read, table)
        assert json.loads(storage.read(f"{folder}/results.json")) == plain
    again, provenance = read_results(storage, "rows")
    pd.testing.assert_frame_equal(again, table)
    assert provenance == plain
    with pytest.raises(FileNotFoundError):
        read_results(storage, "another")


def test_another_configuration_leaves_the_earlier_results(plan: Plan, storage: Storage) -> None:
    _, first = write_results(plan, storage, half_failed(plan, storage))
    less = make_plan(dataclasses.replace(plan.experiment, methods=("zeroshot",)))
    _, second = write_results(less, storage, {})
    assert first["fingerprint"] != second["fingerprint"]
    earlier = pd.read_parquet(
        io.BytesIO(storage.read(f"rows/history/{first['fingerprint']}/results.parquet"))
    )
    assert len(earlier) > len(read_results(storage, "rows")[0]) == 2


def test_provenance_tells_what_made_the_numbers(plan: Plan, storage: Storage) -> None:
    _, about = write_results(plan, storage, half_failed(plan, storage))
    assert about["experiment"] == "rows"
    assert about["configuration"] == dataclasses.asdict(plan.experiment)
    assert about["seeds"] == {"seed": 3, "task_seed": 0, "origins": ["seed-0"]}
    assert {"python", "torch", "ray", "mlflow", "open_clip_torch", "neulig-ray"} <= about["versions"].keys()
    assert "not installed" not in about["versions"].values()
    assert {"machine", "system", "cpus", "gpus"} <= about["hardware"].keys()
    assert about["command"]
    assert about["versions"]["neulig-ray"] == probe.versions()["neulig-ray"], "as `doctor --cluster` tells it"
    assert about["date"].endswith("+00:00")
    everything = {a.fingerprint for found in plan.artifacts().values() for a in found}
    assert set(about["artifacts"]) == everything, "`neulig storage prune` keeps these"
