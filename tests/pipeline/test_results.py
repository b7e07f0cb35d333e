"""The results of a run: rows of what was measured and of what failed, and their provenance."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neulig_ray.cli.doctor import probe
from neulig_ray.cluster.run_context import Failures
from neulig_ray.errors import InputError, StageError
from neulig_ray.evaluation.correct_images import correct_bytes
from neulig_ray.experiment.config import Experiment, Search
from neulig_ray.pipeline.outcome import Results
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.results import write_results
from neulig_ray.pipeline.stored_results import correct_file, read_correctness, read_results
from neulig_ray.results.correctness import Correctness, row_key
from neulig_ray.stages.evaluation_jobs import CORRECT_FILE, ROWS_FILE
from neulig_ray.stages.evaluations import PlannedEvaluation
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


def measure(evaluation: PlannedEvaluation, storage: Storage, bits: bool = True) -> None:
    """Commit rows as an evaluation's job does; without `bits` as one of 0.1's early versions."""
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "granularity": evaluation.common["granularity"],
            "buffers": "",
            "num_samples": 10,
            "merging_accuracy": 50.0,
            "ensembling_accuracy": 60.0,
            "seconds": 1.0,
        }
        for task in evaluation.tasks
    ]
    files = {ROWS_FILE: json.dumps(rows).encode()}
    if bits:
        sides = np.arange(10) < 5, np.arange(10) < 6
        kept = {row_key(row): Correctness.of(np.arange(10), *sides) for row in rows}
        files[CORRECT_FILE] = correct_bytes(kept)
    storage.commit(evaluation.job.artifact, files, {})


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
    seeds = {"seed": 3, "experts": [3], "ligands": {3: [3]}, "task_seed": 0, "origins": ["seed-0"]}
    assert about["seeds"] == seeds
    assert {"python", "torch", "ray", "mlflow", "open_clip_torch", "neulig-ray"} <= about["versions"].keys()
    assert "not installed" not in about["versions"].values()
    assert {"machine", "system", "cpus", "gpus"} <= about["hardware"].keys()
    assert about["command"]
    assert about["versions"]["neulig-ray"] == probe.versions()["neulig-ray"], "as `doctor --cluster` tells it"
    assert about["date"].endswith("+00:00")
    everything = {a.fingerprint for found in plan.artifacts().values() for a in found}
    assert set(about["artifacts"]) == everything, "`neulig storage prune` keeps these"


def test_the_bits_of_every_row_lie_beside_the_table(plan: Plan, storage: Storage) -> None:
    failures = half_failed(plan, storage)
    table, about = write_results(plan, storage, failures)
    assert about["warnings"] == []
    for row in table[table["status"] == "ok"].to_dict("records"):
        bits = read_correctness(storage, correct_file("rows", row["fingerprint"]))[row_key(row)]
        assert 100 * bits.right("merging").mean() == row["merging_accuracy"]
    stored = {info.base_name for info in storage.files("rows/correct")}
    measured = {e.job.artifact.fingerprint for e in plan.evaluations} - failures.keys()
    assert stored == {f"{fingerprint}.safetensors" for fingerprint in measured}
    before = {info.path: info.mtime_ns for info in storage.files("rows/correct")}
    write_results(plan, storage, failures)
    assert {info.path: info.mtime_ns for info in storage.files("rows/correct")} == before


def test_results_compare_their_rows(plan: Plan, storage: Storage) -> None:
    write_results(plan, storage, half_failed(plan, storage))
    found = Results.read(storage, "rows").compare(
        "method=ligand alignment=sup granularity=task accuracy=ensembling", "method=average"
    )
    assert (found.difference.points, found.difference.images, found.tasks) == (
        pytest.approx(10.0),
        20,
        ("digits", "textures"),
    )


def test_an_evaluation_of_an_older_version_stays_and_a_line_says_so(plan: Plan, storage: Storage) -> None:
    old, *rest = plan.evaluations
    measure(old, storage, bits=False)
    for evaluation in rest:
        measure(evaluation, storage)
    table, about = write_results(plan, storage, {})
    assert set(table["status"]) == {"ok"}
    (warning,) = about["warnings"]
    assert warning.startswith(f"1 of {len(plan.evaluations)} evaluations are of a version that kept no bits")
    assert storage.size(correct_file("rows", old.job.artifact.fingerprint)) is None
    row = table[table["fingerprint"] == old.job.artifact.fingerprint].iloc[0]
    shown = f"method={row['method']} task={row['task']}"
    with pytest.raises(InputError, match="of a version that kept no bits"):
        Results(name="rows", rows=table, about=about, storage=storage).compare(shown, shown)


def test_a_table_without_the_newer_columns_is_read(plan: Plan, storage: Storage) -> None:
    table, _ = write_results(plan, storage, half_failed(plan, storage))
    newer = ["gap_low", "gap_high", "agreement_unsure"]
    stream = io.BytesIO()
    table.drop(columns=newer).to_parquet(stream, index=False)
    storage.write("rows/results.parquet", stream.getvalue())
    again, _ = read_results(storage, "rows")
    assert again[newer].isna().all(axis=None)
    pd.testing.assert_frame_equal(again.drop(columns=newer), table.drop(columns=newer))


def test_damaged_bits_are_named(plan: Plan, storage: Storage) -> None:
    failures = half_failed(plan, storage)
    artifact = next(e.job.artifact for e in plan.evaluations if e.job.artifact.fingerprint not in failures)
    storage.write(f"{artifact.path}/{CORRECT_FILE}", b"x" * 100)
    with pytest.raises(StageError, match=rf"{artifact.fingerprint}/{CORRECT_FILE} is damaged"):
        write_results(plan, storage, failures)
