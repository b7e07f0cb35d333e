"""The stages on one local Ray cluster: `smallest` from tasks to table, and what a failure leaves."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load as load_safetensors

from neulig_ray.cli import main
from neulig_ray.cli.experiments import load
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.pipeline.outcome import Results
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.stages.ligands import SEARCH_FILE
from neulig_ray.stages.tasks import array_bytes
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session", "in_repository")]

GRANULARITIES = {
    "task",
    "sample",
    "global",
    "batch-first",
    "batch-mean",
    "batch-first-mixed",
    "batch-mean-mixed",
}


def table(storage: Path) -> pd.DataFrame:
    return pd.read_parquet(storage / "smallest/results.parquet")


def the_plan(**changes: Any) -> Plan:
    import dataclasses

    experiment, _ = load("smallest")
    return make_plan(dataclasses.replace(experiment, **changes))


@pytest.fixture(scope="module")
def rows(smallest_storage: Path) -> pd.DataFrame:
    return table(smallest_storage)


# What a run measures ----------------------------------------------------------------------------------------


def test_every_method_has_its_rows(rows: pd.DataFrame) -> None:
    assert set(rows["status"]) == {"ok"}
    ligand = rows[rows.method == "ligand"]
    assert rows[rows.method != "ligand"].groupby("method").size().to_dict() == {
        "zeroshot": 2,
        "expert": 2,
        "average": 4,  # statistics averaged and re-estimated
        "hard-routing": 4,
        **{f"ensemble-{kind}": 2 for kind in ("embedding", "logit", "probability", "vote")},
    }
    for alignment in ("sup", "semi"):
        sizes = ligand[ligand.alignment == alignment].groupby("granularity").size().to_dict()
        assert sizes == {g: 10 if g.startswith("batch-") else 2 for g in GRANULARITIES}


def test_key_columns(rows: pd.DataFrame) -> None:
    assert not rows.duplicated(list(rows.columns[:15])).any()
    assert set(rows["arch"]) == {"tiny-rn"}
    assert set(rows["origin"]) == {"seed-0"}
    assert set(rows["options"]) == {"{}"}
    assert set(rows["task"]) == {"digits", "textures"}
    combined = rows[rows["n"] == 2]
    assert set(combined["collaborators"]) == {"digits,textures"}
    assert set(rows[rows.method == "average"]["buffers"]) == {"average", "re-estimated"}
    ligand = rows[rows.method == "ligand"]
    assert set(ligand["buffers"]) == {"average"}
    batches = ligand["granularity"].str.startswith("batch")
    assert set(ligand[batches]["batch_size"]) == {128}
    assert ligand[~batches]["batch_size"].isna().all()
    assert set(ligand[batches]["order_seed"]) == set(range(5))
    assert set(ligand[ligand.granularity == "sample"]["num_samples"]) == {200}
    assert (ligand[ligand.granularity == "task"]["num_samples"] >= 500).all()
    assert ligand[["learning_rate", "alignment_weight", "seconds"]].notna().all(axis=None)
    assert (rows["parameters"] > 0).all()
    assert (rows["peak_memory_bytes"] > 1e6).all()


def test_single_models_and_ensembles_have_one_accuracy(rows: pd.DataFrame) -> None:
    single = rows[rows.method.isin(["zeroshot", "expert", "hard-routing"])]
    assert single["merging_accuracy"].notna().all()
    assert single[["ensembling_accuracy", "gap"]].isna().all(axis=None)
    ensembles = rows[rows.method.str.startswith("ensemble-")]
    assert ensembles["ensembling_accuracy"].notna().all()
    assert ensembles[["merging_accuracy", "gap"]].isna().all(axis=None)
    both = rows[rows.method.isin(["ligand", "average"])]
    assert np.allclose(both["gap"], both["ensembling_accuracy"] - both["merging_accuracy"])


def test_every_row_is_beside_what_it_has_right(rows: pd.DataFrame, smallest_storage: Path) -> None:
    both = rows[rows["gap"].notna()]
    batches = both["batch_size"].notna()
    assert both.loc[batches, ["gap_low", "gap_high"]].isna().all(axis=None)
    both = both[~batches]
    assert both[["gap_low", "gap_high"]].notna().all(axis=None)
    assert ((both["gap_low"] <= both["gap"]) & (both["gap"] <= both["gap_high"])).all()
    stored = {file.stem for file in (smallest_storage / "smallest/correct").iterdir()}
    assert stored == set(rows["fingerprint"])
    results = Results.read(Storage(str(smallest_storage)), "smallest")
    for row in rows.to_dict("records"):
        named = {name: "" if pd.isna(row[name]) else row[name] for name in rows.columns[:15]}
        side = "merging" if pd.notna(row["merging_accuracy"]) else "ensembling"
        assert results.compare(named, named).first.accuracy == pytest.approx(row[f"{side}_accuracy"])


def test_experts_learned_their_tasks(rows: pd.DataFrame) -> None:
    reached = rows[rows.method == "expert"].set_index("task")["merging_accuracy"]
    floor = rows[rows.method == "zeroshot"].set_index("task")["merging_accuracy"]
    assert (reached > floor + 10).all()


def test_what_lies_beside_the_table(smallest_storage: Path) -> None:
    for name in ("smallest/results.json", "smallest/report.html", "mlflow.db", "mlflow-artifacts"):
        assert (smallest_storage / name).exists()
    about = json.loads((smallest_storage / "smallest/results.json").read_text())
    assert about["failures"] == {}
    assert not list((smallest_storage / "ray").rglob("*.pt")), "checkpoints of finished trainings are removed"
    assert main(["storage", "verify", "--storage", str(smallest_storage)]) == 0


# The same accuracies by other code: numpy over the stored files ---------------------------------------------


class Files:
    """The artifacts of a storage by kind and label, read without the package."""

    def __init__(self, storage: Path) -> None:
        self._folders = {}
        for manifest in (storage / "artifacts").glob("*/*/manifest.json"):
            about = json.loads(manifest.read_text())
            self._folders[about["kind"], about["label"]] = manifest.parent

    def array(self, kind: str, label: str, name: str) -> np.ndarray:
        return np.load(self._folders[kind, label] / name)

    def z(self, model: str, task: str) -> np.ndarray:
        return self.array("embedding", f"tiny-rn.{model}.on.{task}", "test.npy")

    def head(self, task: str) -> np.ndarray:
        return self.array("head", f"tiny-rn.{task}@seed-0", "head.npy")

    def labels(self, task: str) -> np.ndarray:
        return self.array("task", f"{task}.s0", "test-labels.npy")

    def ligand(self, alignment: str) -> tuple[np.ndarray, np.ndarray]:
        file = self._folders["ligand", f"tiny-rn.seed-0.n2.{alignment}"] / "ligand.safetensors"
        tensors = load_safetensors(file.read_bytes())
        return tensors["weight"][0], tensors["bias"][0]

    def logits(self, z: np.ndarray, task: str) -> np.ndarray:
        return z / np.linalg.norm(z, axis=1, keepdims=True) @ self.head(task).T

    def percent(self, scores: np.ndarray, task: str) -> float:
        return 100.0 * float((scores.argmax(1) == self.labels(task)).mean())


PAIR = ("digits@seed-0", "textures@seed-0")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def accuracy_of(rows: pd.DataFrame, column: str, **where: str) -> float:
    for name, value in where.items():
        rows = rows[rows[name] == value]
    (found,) = set(rows[column])
    return float(found)


@pytest.mark.parametrize("task", ["digits", "textures"])
def test_single_models_recomputed(rows: pd.DataFrame, smallest_storage: Path, task: str) -> None:
    files = Files(smallest_storage)
    for method, model in (("expert", f"{task}@seed-0"), ("zeroshot", "seed-0")):
        expected = files.percent(files.logits(files.z(model, task), task), task)
        assert accuracy_of(rows, "merging_accuracy", method=method, task=task) == pytest.approx(expected)


@pytest.mark.parametrize("task", ["digits", "textures"])
def test_uniform_ensembles_recomputed(rows: pd.DataFrame, smallest_storage: Path, task: str) -> None:
    files = Files(smallest_storage)
    z = np.stack([files.z(model, task) for model in PAIR])
    logits = np.stack([files.logits(part, task) for part in z])
    expected = {
        "ensemble-embedding": files.logits(z.mean(0), task),
        "ensemble-logit": logits.mean(0),
        "ensemble-probability": np.stack([softmax(part) for part in logits]).mean(0),
    }
    for method, scores in expected.items():
        found = accuracy_of(rows, "ensembling_accuracy", method=method, task=task)
        assert found == pytest.approx(files.percent(scores, task)), method
    average = accuracy_of(rows, "ensembling_accuracy", method="average", task=task, buffers="average")
    assert average == pytest.approx(files.percent(expected["ensemble-embedding"], task))


@pytest.mark.parametrize("task", ["digits", "textures"])
@pytest.mark.parametrize("alignment", ["sup", "semi"])
def test_the_ligands_ensemble_recomputed(
    rows: pd.DataFrame, smallest_storage: Path, alignment: str, task: str
) -> None:
    """beta = softmax(A [z_1; z_2] + b), head(sum_i beta_i z_i), entropy, routing and hard routing."""
    files = Files(smallest_storage)
    weight, bias = files.ligand(alignment)
    z = [files.z(model, task) for model in PAIR]
    beta = softmax(np.concatenate(z, axis=1) @ weight.T + bias)
    own = PAIR.index(f"{task}@seed-0")
    weighted = sum(beta[:, i : i + 1] * part for i, part in enumerate(z))
    here = {"alignment": alignment, "task": task}
    ligand = {**here, "method": "ligand", "granularity": "task"}
    expected = files.percent(files.logits(weighted, task), task)
    assert accuracy_of(rows, "ensembling_accuracy", **ligand) == pytest.approx(expected)
    routed = 100.0 * float((beta.argmax(1) == own).mean())
    assert accuracy_of(rows, "routing_accuracy", **ligand) == pytest.approx(routed)
    spread = float(-(beta * np.log(np.maximum(beta, 1e-30))).sum(1).mean() / np.log(2))
    assert accuracy_of(rows, "entropy", **ligand) == pytest.approx(spread, abs=1e-5)
    chosen = np.where(beta.argmax(1)[:, None] == 0, z[0], z[1])
    hard = accuracy_of(rows, "merging_accuracy", method="hard-routing", **here)
    assert hard == pytest.approx(files.percent(files.logits(chosen, task), task))


# What a second run does -------------------------------------------------------------------------------------


def test_the_same_command_again_starts_no_ray(
    smallest_storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (smallest_storage / "smallest/results.parquet").read_bytes()

    def start(self: ClusterSession) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ClusterSession, "start", start)
    printed = []
    for _ in range(2):
        assert main(["run", "smallest", "--storage", str(smallest_storage)]) == 0
        printed.append(capsys.readouterr())
    assert (smallest_storage / "smallest/results.parquet").read_bytes() == before
    assert printed[0].out == printed[1].out
    assert "digits" in printed[0].out
    assert "experts      2 in the storage" in printed[0].err
    assert "0 of them written" in printed[0].err, "MLflow has it all already"


def test_a_process_of_its_own_needs_no_ray_either(
    smallest_storage: Path, start_command: Callable[..., Any], rows: pd.DataFrame
) -> None:
    """No Ray answers at the address: a run that asked it for anything would end with exit status 2."""
    started = os.times()
    command = start_command(
        "run", "smallest", "--storage", smallest_storage, "--quiet", "--json", "--address", "127.0.0.1:1"
    )
    assert command.wait(120) == 0, command.output
    ended = os.times()
    spent = ended.children_user + ended.children_system - started.children_user - started.children_system
    assert spent < 15, "seconds of processor time"
    printed = json.loads(command.output)
    assert len(printed) == len(rows)
    assert [row["fingerprint"] for row in printed] == list(rows["fingerprint"])


def test_embeddings_reach_a_trial_as_read_only_numpy(smallest_storage: Path) -> None:
    import ray

    from neulig_ray.stages.search import gather

    plan, storage = the_plan(), Storage(str(smallest_storage))
    shared = ray.put(gather(plan.cells[0].trials, storage))

    def look(data: dict[str, Any]) -> list[tuple[str, bool, bool]]:
        found = []
        for split in ("train", "val"):
            for field in ("embeddings", "heads", "labels", "images"):
                for array in getattr(data[split], field).values():
                    found.append((f"{split} {field}", array.flags.writeable, array.flags.owndata))
        return found

    found = ray.get(ray.remote(look).remote(shared))
    assert {name for name, _, _ in found} >= {"train embeddings", "val embeddings", "val images"}
    assert not any(writeable for _, writeable, _ in found), "Ray's shared memory cannot be written to"
    assert not any(own for name, _, own in found if "embeddings" in name), "not copied either"


# What a failure leaves --------------------------------------------------------------------------------------


def test_a_diverging_expert_stops_alone(copied_storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its head is made NaN in the storage, and it comes first in the one worker group."""
    storage = Storage(str(copied_storage))
    plan = the_plan()
    shutil.rmtree(copied_storage / "artifacts/expert")
    head = next(job.artifact for job in plan.heads if "textures" in job.artifact.label)
    storage.delete_tree(head.path)
    classes = len(TASKS["textures"].class_names)
    storage.commit(head, {"head.npy": array_bytes(np.full((classes, 128), np.nan, np.float32))}, {})
    command = ["run", "smallest", "--storage", str(copied_storage), "--tasks", "textures", "digits"]
    flags = ["--cluster.max_groups", "1", "--methods", "zeroshot", "expert", "average"]
    assert main([*command, *flags]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "tiny-rn.textures@seed-0 failed:" in told
    found = table(copied_storage)
    status = {(r.method, r.task): r.status for r in found.itertuples()}
    assert status["expert", "digits"] == "ok"
    assert status["zeroshot", "digits"] == "ok"
    broken = status["expert", "textures"]
    assert broken.startswith("failed: ")
    for word in ("expert tiny-rn.textures@seed-0", "TrainingDiverged", "epoch 1, step 1", "loss nan"):
        assert word in broken
    for task in ("digits", "textures"):
        assert "expert tiny-rn.textures@seed-0: TrainingDiverged" in status["average", task]
    assert found[found.status != "ok"]["merging_accuracy"].isna().all()
    assert any((copied_storage / "artifacts/expert").glob("*digits*/manifest.json"))
    about = json.loads((copied_storage / "smallest/results.json").read_text())
    assert "expert tiny-rn.textures@seed-0" in about["failures"]


def test_a_diverging_origin_is_named_by_all_that_depends_on_it(tmp_path: Path) -> None:
    command = ["run", "smallest", "--storage", str(tmp_path), "--methods", "expert", "average", "--quiet"]
    pretrain = ["--pretrain.no-shipped", "--pretrain.learning_rate", "1e30", "--pretrain.steps", "9"]
    assert main([*command, *pretrain, "--pretrain.images", "300", "--pretrain.tasks", "digits"]) == 1
    found = table(tmp_path)
    assert len(found) == 4
    assert found["status"].str.contains("origin tiny-rn.seed-0: TrainingDiverged").all()
    assert found["status"].str.contains(r"step \d").all()
    assert not (tmp_path / "artifacts/expert").exists()


def test_a_diverging_trial_does_not_stop_the_search(copied_storage: Path) -> None:
    """Adam's steps of 1e30 saturate the gate, and its loss stays finite; those of 1e38 overflow."""
    command = ["run", "smallest", "--storage", str(copied_storage), "--quiet", "--search.trials", "3"]
    flags = ["--search.learning_rate", "1e38", "1e38", "--alignment", "sup", "--methods", "ligand"]
    assert main([*command, *flags, "--evaluation.granularities", "task"]) == 0
    (file,) = [
        path
        for path in (copied_storage / "artifacts/ligand").glob(f"*/{SEARCH_FILE}")
        if "1e+38" in path.read_text()
    ]
    search = json.loads(file.read_text())
    first, *others = search["trials"]
    assert first["status"] == "ok"
    assert [trial["learning_rate"] for trial in others] == [1e38, 1e38]
    for trial in others:
        assert trial["status"].startswith("failed: ")
        assert "val_merging" not in trial
    assert search["chosen"] == first["fingerprint"]
    found = table(copied_storage)
    assert set(found["status"]) == {"ok"}
    assert set(found["learning_rate"]) == {1e-3}


def test_two_workers_make_an_expert_together(copied_storage: Path) -> None:
    before = set((copied_storage / "artifacts/expert").iterdir())
    command = ["finetune", "smallest", "--storage", str(copied_storage), "--quiet"]
    started = time.monotonic()
    assert main([*command, "--finetune.workers", "2", "--finetune.epochs", "1"]) == 0
    assert time.monotonic() - started < 600
    made = set((copied_storage / "artifacts/expert").iterdir()) - before
    assert len(made) == 2
    for folder in made:
        info = json.loads((folder / "manifest.json").read_text())["info"]
        assert [point["epoch"] for point in info["curve"]] == [1]
        assert info["curve"][0]["val_accuracy"] > 40


def test_an_empty_split_fails_with_its_name(tmp_path: Path, start_command: Callable[..., Any]) -> None:
    plugin = tmp_path / "hollow.py"
    plugin.write_text(
        "import numpy as np\n"
        "from neulig_ray.tasks import Split, task\n"
        "@task('hollow', class_names=('a', 'b'), source='a test')\n"
        "def load(seed):\n"
        "    full = Split(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2)\n"
        "    return {'train': full, 'val': Split(full.images[:0], full.labels[:0]), 'test': full}\n"
    )
    tasks = ["--tasks", "digits", "hollow", "--plugins", plugin]
    command = start_command("run", "smallest", "--storage", tmp_path / "s", *tasks)
    assert command.wait(200) == 1
    assert "task 'hollow', split 'val' is empty" in " ".join(command.output.split())
    assert list((tmp_path / "s/artifacts/task").glob("digits*/manifest.json")), "what was finished is kept"


def test_results_are_readable_without_the_package(smallest_storage: Path) -> None:
    read = pd.read_parquet(io.BytesIO((smallest_storage / "smallest/results.parquet").read_bytes()))
    assert list(read.columns[:4]) == ["arch", "origin", "n", "collaborators"]
    assert str(read["n"].dtype) in ("Int64", "int64")
