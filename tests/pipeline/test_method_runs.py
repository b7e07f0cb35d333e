"""Methods of every kind, and a fused origin, from command to table on the local Ray cluster.

The tasks, experts and embeddings are those of `smallest`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from safetensors.numpy import load_file

from neulig_ray.cli import main
from neulig_ray.cli.experiments import load
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.evaluation.context import choose
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower, preprocess
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.stages.experts import load_expert
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.origins import load_clip
from neulig_ray.stages.tasks import load_split, read_array
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking import store

pytestmark = [pytest.mark.ray]

SMALLEST = str(REPOSITORY / "experiments/smallest.py")
PAIR = ("digits@seed-0", "textures@seed-0")
KINDS = {
    "streamed": "task-arithmetic",
    "measured": "regmean:examples=16",
    "trained": "adamerging:steps=2,batch_size=4",
    "routed": "tall-mask",
    "refused": "wemoe",
    "ensemble": "ensemble-embedding",
    "joint": "joint",
}
VAL_IMAGES = 40
COMMAND = [
    "run", SMALLEST, "--name", "kinds", "--methods", *KINDS.values(),
    "--search.val-images", str(VAL_IMAGES), "--evaluation.batchnorm-images", "32",
]  # fmt: skip


@pytest.fixture(scope="module")
def storage(smallest_storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a run of methods of every kind."""
    folder = tmp_path_factory.mktemp("kinds") / "storage"
    shutil.copytree(smallest_storage / "artifacts", folder / "artifacts")
    assert main([*COMMAND, "--storage", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def rows(storage: Path) -> pd.DataFrame:
    return pd.read_parquet(storage / "kinds/results.parquet")


@pytest.fixture(scope="module")
def about(storage: Path) -> dict[str, Any]:
    return json.loads((storage / "kinds/results.json").read_text())


def _refuse(self: ClusterSession) -> None:
    raise AssertionError("Ray was started")


def test_every_kind_has_its_rows(rows: pd.DataFrame) -> None:
    of_static_models = {"average": 2, "re-estimated": 2}
    found = {method: group.groupby("buffers").size().to_dict() for method, group in rows.groupby("method")}
    assert found == {
        "task-arithmetic": of_static_models,
        "regmean": of_static_models,
        "adamerging": of_static_models,
        "tall-mask": of_static_models,
        "wemoe": {"": 2},
        "ensemble-embedding": {"": 2},
        "joint": {"": 2},
    }
    measured = rows[rows.method != "wemoe"]
    assert set(measured["status"]) == {"ok"}
    merged = measured[measured.method != "ensemble-embedding"]
    assert merged["merging_accuracy"].between(0, 100).all()
    assert set(rows[rows.method == "tall-mask"]["granularity"]) == {"task"}
    linear = rows[rows.method == "task-arithmetic"]
    assert np.allclose(linear["gap"], linear["ensembling_accuracy"] - linear["merging_accuracy"])
    others = merged[merged.method != "task-arithmetic"]
    assert others[["ensembling_accuracy", "gap"]].isna().all(axis=None)


def test_one_network_is_fine_tuned_on_both_tasks(
    storage: Path, rows: pd.DataFrame, about: dict[str, Any]
) -> None:
    (folder,) = (storage / "artifacts/joint").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["label"] == f"tiny-rn.{','.join(PAIR)}"
    assert manifest["fingerprint"] in about["artifacts"]
    assert [point["epoch"] for point in manifest["info"]["curve"]] == [1, 2], "as its experts"
    found = rows[rows.method == "joint"].set_index("task")
    state = {name: torch.from_numpy(value) for name, value in load_file(folder / "joint.safetensors").items()}
    expected = accuracies(storage, state, "test", None)
    assert found["merging_accuracy"].to_dict() == pytest.approx(expected, abs=0.3)
    assert set(found["granularity"]) == {"global"}
    assert set(found["n"]) == {2}


def test_a_method_that_does_not_exist_for_the_arch_is_left_out_and_says_why(rows: pd.DataFrame) -> None:
    refused = rows[rows.method == "wemoe"]
    (status,) = set(refused["status"])
    assert status.startswith("skipped: ")
    assert "WeMoE is not defined for CNNs" in status
    assert refused["merging_accuracy"].isna().all()


def accuracies(
    storage: Path, state: dict[str, torch.Tensor], split: str, limit: int | None
) -> dict[str, float]:
    """Of a tower on both tasks, in percent, without the package's benches."""
    kept, models = Storage(str(storage)), known()
    tower = build_tower(ARCHS["tiny-rn"])
    tower.load_state_dict(state)
    found = {}
    for key in PAIR:
        task = key.split("@")[0]
        data = load_split(kept, models.data[task], split)
        chosen = choose(len(data.images), limit, 0, task).numpy()
        with torch.no_grad():
            z = tower.eval()(preprocess(data.images[chosen].copy(), ARCHS["tiny-rn"])).numpy()
        head = read_array(kept, models.heads[key], HEAD_FILE)
        right = (z / np.linalg.norm(z, axis=1, keepdims=True) @ head.T).argmax(1) == data.labels[chosen]
        found[task] = 100 * float(right.mean())
    return found


def known() -> ArchModels:
    return make_plan(load(SMALLEST)[0]).models[0]["tiny-rn"]


def with_scaling(storage: Path, scaling: float) -> dict[str, torch.Tensor]:
    """theta_0 + scaling * sum of the task vectors; BatchNorm's statistics averaged."""
    kept, models = Storage(str(storage)), known()
    base = load_clip(kept, models.origins["seed-0"], "tiny-rn").visual.state_dict()
    one, other = (load_expert(kept, models.experts[key], "tiny-rn") for key in PAIR)
    made = {}
    for name, tensor in base.items():
        if "running" in name:
            made[name] = (one[name] + other[name]) / 2
        elif tensor.is_floating_point():
            made[name] = tensor + scaling * (one[name] + other[name] - 2 * tensor)
        else:
            made[name] = one[name]
    return made


def test_the_scaling_is_the_best_on_val_and_its_rows_are_of_test(
    storage: Path, rows: pd.DataFrame, about: dict[str, Any]
) -> None:
    entries = {(entry["method"], entry["buffers"]): entry for entry in about["selected"]}
    entry = entries["task-arithmetic", "average"]
    assert (entry["arch"], entry["collaborators"], entry["options"]) == ("tiny-rn", "digits,textures", {})
    val = {}
    for tenths in range(1, 11):
        reached = accuracies(storage, with_scaling(storage, tenths / 10), "val", VAL_IMAGES)
        val[tenths / 10] = float(np.mean(list(reached.values())))
    chosen = entry["chosen"]["scaling"]
    assert len(set(val.values())) > 1, "nothing to choose between"
    assert val[chosen] == pytest.approx(max(val.values()))
    found = rows[(rows.method == "task-arithmetic") & (rows.buffers == "average")].set_index("task")
    expected = accuracies(storage, with_scaling(storage, chosen), "test", None)
    assert found["merging_accuracy"].to_dict() == pytest.approx(expected, abs=0.3)
    assert (found["num_samples"] > VAL_IMAGES).all()


def test_whatever_was_chosen_is_told(about: dict[str, Any]) -> None:
    told = {(entry["method"], entry["buffers"]) for entry in about["selected"]}
    methods = ("task-arithmetic", "tall-mask")
    assert told == {(method, buffers) for method in methods for buffers in ("average", "re-estimated")}
    for entry in about["selected"]:
        (value,) = entry["chosen"].values()
        assert value in (
            (0.2, 0.3, 0.4, 0.5, 0.6) if entry["method"] == "tall-mask" else np.arange(1, 11) / 10
        )


def test_statistics_are_artifacts_of_their_own(storage: Path, about: dict[str, Any]) -> None:
    manifests = [
        json.loads(m.read_text()) for m in (storage / "artifacts/statistics").glob("*/manifest.json")
    ]
    assert {m["label"] for m in manifests} == {f"regmean.tiny-rn.{key}" for key in PAIR}
    for manifest in manifests:
        assert manifest["info"]["options"] == {"examples": 16, "seed": 0}
        assert manifest["fingerprint"] in about["artifacts"]
    (file, *_) = (storage / "artifacts/statistics").glob("*/statistics.safetensors")
    grams = load_file(file)
    assert {"conv1.weight", "attnpool.c_proj.weight"} <= grams.keys()
    gram = grams["attnpool.c_proj.weight"]
    assert np.allclose(gram, gram.T, atol=1e-4 * gram.max())


def test_the_same_command_again_computes_nothing(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ClusterSession, "start", _refuse)
    before = (storage / "kinds/results.parquet").read_bytes()
    assert main([*COMMAND, "--storage", str(storage)]) == 0
    told = capsys.readouterr()
    assert (storage / "kinds/results.parquet").read_bytes() == before
    assert "statistics   2 in the storage" in told.err
    assert "0 of them written" in told.err, "MLflow has it all already"
    assert "regmean" in told.out


def test_every_method_is_a_run_of_the_cell(storage: Path, rows: pd.DataFrame) -> None:
    client = store.client(store.local_uri(storage)[0])
    experiment = client.get_experiment_by_name("kinds")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in runs if run.data.tags["mlflow.runName"] == "tiny-rn seed-0 n=2"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    by_variant = {(run.data.tags["method"], run.data.tags.get("buffers", "")): run.data for run in children}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert by_variant.keys() == set(zip(rows["method"], rows["buffers"], strict=True))
    for row in rows[rows.status == "ok"].itertuples():
        metrics = by_variant[row.method, row.buffers].metrics
        kind = "ensembling" if row.method == "ensemble-embedding" else "merging"
        assert metrics[f"{kind}/{row.task}"] == pytest.approx(getattr(row, f"{kind}_accuracy"))
    assert "skipped" in by_variant["wemoe", ""].tags["status"]


# Fused origins ----------------------------------------------------------------------------------------------


def test_a_fused_origin_is_the_mean_of_its_experts_and_is_fine_tuned_again(
    storage: Path, smallest_storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set((storage / "artifacts/expert").iterdir())
    fused = "fused=fuse:seed-0:digits+textures"
    command = ["run", SMALLEST, "--name", "fused", "--origins", fused, "--methods", "zeroshot", "expert"]
    assert main([*command, "--storage", str(storage), "--quiet"]) == 0
    made = {path.name.rpartition("-")[0] for path in set((storage / "artifacts/expert").iterdir()) - before}
    assert made == {"tiny-rn.digits@fused", "tiny-rn.textures@fused"}, "its own experts were there"

    (file,) = (storage / "artifacts/origin").glob("tiny-rn.fused-*/origin.safetensors")
    tower = {k.removeprefix("visual."): v for k, v in load_file(file).items() if k.startswith("visual.")}
    one, other = (
        load_file(next((storage / "artifacts/expert").glob(f"tiny-rn.{key}-*/expert.safetensors")))
        for key in PAIR
    )
    assert tower.keys() == one.keys()
    for name, tensor in tower.items():
        mean = (one[name] + other[name]) / 2 if tensor.dtype.kind == "f" else one[name]
        assert np.array_equal(tensor, mean), name

    found = pd.read_parquet(storage / "fused/results.parquet")
    assert set(found["status"]) == {"ok"}
    assert set(found["origin"]) == {"fused"}
    start = found[found.method == "zeroshot"].set_index("task")["merging_accuracy"]
    averaged = pd.read_parquet(smallest_storage / "smallest/results.parquet")
    averaged = averaged[(averaged.method == "average") & (averaged.buffers == "average")].set_index("task")
    assert start.to_dict() == pytest.approx(averaged["merging_accuracy"].to_dict(), abs=0.3)
    reached = found[found.method == "expert"].set_index("task")["merging_accuracy"]
    assert (reached > start).all()

    monkeypatch.setattr(ClusterSession, "start", _refuse)
    assert main([*command, "--storage", str(storage), "--quiet"]) == 0
