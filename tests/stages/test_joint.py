"""One network for all tasks of a combination: planned once, trained and measured without Ray."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import expert_file

from neulig_ray.cluster.jobs import runnable
from neulig_ray.cluster.train.job import Worker
from neulig_ray.errors import TrainingDiverged
from neulig_ray.experiment.config import Experiment, Finetune
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower, embed
from neulig_ray.models.heads import accuracy
from neulig_ray.pipeline.costs import estimate
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.stored_results import read_correctness
from neulig_ray.stages import heads, tasks
from neulig_ray.stages.evaluation_jobs import CORRECT_FILE
from neulig_ray.stages.evaluations import PlannedEvaluation, evaluation_rows
from neulig_ray.stages.joint import JointJob, load_joint
from neulig_ray.stages.origins import OriginFile
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.tensor_file import TensorFile

BASE = Experiment(
    name="joint",
    archs=("tiny-rn",),
    tasks=("digits", "textures", "shapes"),
    n=(2, 3),
    methods=("zeroshot", "joint"),
    finetune=Finetune(epochs=2, batch_size=16),
)
PAIR = ("digits@seed-0", "textures@seed-0")
COUNTS = {"digits": 48, "textures": 16}
MIXED = {"origins": ("seed-0", "seed-1"), "mixed_origins": (2,), "n": (2,)}


def plan(**changes: Any) -> Plan:
    return make_plan(dataclasses.replace(BASE, **changes))


def of_joint(found: Plan) -> list[PlannedEvaluation]:
    return [e for e in found.evaluations if e.common["method"] == "joint"]


def test_each_combination_of_an_origin_has_one_network_and_a_row_for_each_task() -> None:
    found = plan()
    assert [job.combination for job in found.joint] == [c for g in found.groups for c in g.combinations]
    assert len(found.joint) == 4
    assert len({job.artifact.fingerprint for job in found.joint}) == 4
    assert found.artifacts()["joint"][0].label == "tiny-rn.digits@seed-0,shapes@seed-0"
    for evaluation, job in zip(of_joint(found), found.joint, strict=True):
        tasks_ = tuple(key.split("@")[0] for key in job.combination)
        common = {name: evaluation.common[name] for name in ("n", "collaborators", "granularity", "origin")}
        assert common == {
            "n": len(tasks_), "collaborators": ",".join(tasks_), "granularity": "global", "origin": "seed-0"
        }  # fmt: skip
        assert evaluation.tasks == tasks_
        assert job.artifact in evaluation.job.inputs
        assert not {a.kind for a in evaluation.job.inputs} - {"head", "joint"}, "no expert is waited for"


def test_without_the_method_there_is_no_network_and_nothing_else_changes() -> None:
    without, found = plan(methods=("zeroshot",)).artifacts(), plan().artifacts()
    assert without["joint"] == []
    for stage in without.keys() - {"joint", "evaluations"}:
        assert without[stage] == found[stage]
    assert set(without["evaluations"]) < set(found["evaluations"])


def test_experts_of_several_origins_have_none_and_the_row_says_why(tmp_path: Path) -> None:
    found = plan(**MIXED)
    assert len(found.joint) == 6, "three pairs of each origin"
    mixed = [e for e in of_joint(found) if "," in e.common["origin"]]
    assert len(mixed) == len(of_joint(found)) - 6 == 6
    storage = Storage(str(tmp_path / "storage"))
    mixed[0].job.run(storage)  # which reads nothing
    rows = evaluation_rows(mixed[0], storage, {})
    reason = "it is fine-tuned from one origin, but the experts start from seed-0 and seed-1"
    assert {row["status"] for row in rows} == {f"skipped: {reason}"}
    assert [row["task"] for row in rows] == list(mixed[0].tasks)


def test_a_name_follows_what_decides_about_the_network() -> None:
    def names(**changes: Any) -> set[str]:
        return {job.artifact.fingerprint for job in plan(**changes).joint}

    for change in (
        {"seed": 1}, {"task_seed": 1}, {"finetune": Finetune(epochs=3)}, {"origins": ("seed-1",)},
    ):  # fmt: skip
        assert not names() & names(**change), change
    assert names(methods=("joint",), search=dataclasses.replace(BASE.search, trials=2)) == names()
    assert names(tasks=("textures", "shapes", "digits")) == names(), "in whatever order they are named"


def test_it_sees_what_the_experts_saw_together() -> None:
    """Cars take 35 passes and SVHN 4: so it is here, in one training of 35 epochs."""
    chosen = {"archs": ("ViT-B-32-quickgelu",), "origins": ("openai",), "tasks": ("svhn", "cars"), "n": (2,)}
    found = plan(**chosen, finetune=Finetune())
    (job,) = found.joint
    own = {expert.task: expert.recipe for expert in found.experts}
    assert job.epochs == tuple(own[key.split("@")[0]].epochs for key in job.combination)
    assert len(set(job.epochs)) == 2
    assert job.recipe == max(own.values(), key=lambda recipe: recipe.epochs)
    (same,) = plan(**chosen, finetune=Finetune(epochs=3)).joint
    assert (same.epochs, same.recipe.epochs) == ((3, 3), 3)
    (last,) = plan(tasks=("digits", "textures"), n=(2,), protocol="paper").joint
    assert last.recipe.keep_last, "as its experts'"


def test_its_training_costs_what_its_experts_do(tmp_path: Path) -> None:
    found = plan(tasks=("digits", "textures"), n=(2,), methods=("joint",))
    storage = Storage(str(tmp_path / "storage"))
    stored(found, storage)
    costs = estimate(found, storage)
    assert costs["joint"].cost.flops == pytest.approx(costs["experts"].cost.flops)
    assert costs["joint"].cost.bytes == costs["experts"].cost.bytes / 2
    step = costs["joint"].cost.flops / (3 * 2 * sum(COUNTS.values()))
    assert costs["evaluations"].cost.flops == pytest.approx(step * sum(COUNTS.values()))
    mixed = [e for e in of_joint(plan(**MIXED)) if e.job.mixed]
    assert mixed[0].job.cost(found.sizes(storage)).flops == 0


def test_an_imported_experts_network_starts_from_its_origin_all_the_same(tmp_path: Path) -> None:
    path, _ = expert_file(tmp_path, ARCHS["tiny-rn"])
    found = plan(experts=(str(path),))
    assert [expert.key for expert in found.imported] == ["digits@seed-0"]
    assert found.joint == plan().joint


# From its first step to its rows


def split(task: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A small split whose labels are told by brightness."""
    seed = ("train", "val", "test").index(name)
    generator = np.random.default_rng((len(task), seed))
    count = COUNTS[task] if name != "val" else 12
    labels = generator.integers(0, 4, count)
    images = generator.integers(0, 40, (count, 32, 32, 3)) + 60 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def stored(found: Plan, storage: Storage) -> None:
    """Small data, real heads and origins in the places of the plan's."""
    for task, job in found.tasks.items():
        files, images = {}, {}
        for name in ("train", "val", "test"):
            pixels, labels = split(task, name)
            files |= {
                f"{name}-0.npy": tasks.array_bytes(pixels),
                f"{name}-labels.npy": tasks.array_bytes(labels),
            }
            images[name] = len(labels)
        shards = {name: [f"{name}-0.npy"] for name in images}
        storage.commit(job.artifact, files, {"images": images, "shards": shards, "notes": []})
    for origin in found.origins:
        assert isinstance(origin.job, OriginFile)
        origin.job.store(storage)
    for head in found.heads:
        head.run(storage)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plan, Storage, list[dict[str, Any]]]]:
    """A network, its training's checkpoints, and where it is stored."""
    torch.set_num_threads(1)
    found = plan(tasks=("digits", "textures"), n=(2,), methods=("joint",))
    storage = Storage(str(tmp_path_factory.mktemp("joint") / "storage"))
    stored(found, storage)
    (job,) = found.joint
    checkpoints, curve = [], []
    for step in job.steps(storage, Worker(), None):
        checkpoints.append(step.checkpoint())
        curve.append(dict(step.point))
    assert step.final
    storage.commit(job.artifact, *job.files(step, curve))
    return found, storage, checkpoints


def test_the_network_is_stored_with_what_it_was_made_of(trained: Any) -> None:
    found, storage, checkpoints = trained
    (job,) = found.joint
    state = load_joint(storage, job.artifact, "tiny-rn")
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoints[-1]["tower"].items())
    info = storage.manifest(job.artifact)["info"]
    assert (info["tasks"], info["origin"]) == (["digits", "textures"], "tiny-rn.seed-0")
    assert [point["epoch"] for point in info["curve"]] == [1, 2]
    steps = {float(entry["step"]) for entry in checkpoints[-1]["optimizer"]["state"].values()}
    assert steps == {2 * (48 + 16) / 16}
    about = TensorFile(storage.place(f"{job.artifact.path}/joint.safetensors")).metadata["neulig"]
    assert '"tasks"' in about


def test_a_training_resumed_by_its_job_ends_with_the_same_bytes(trained: Any) -> None:
    found, storage, checkpoints = trained
    (job,) = found.joint
    (step,) = job.steps(storage, Worker(), checkpoints[0])
    files, _ = job.files(step, [])
    assert files["joint.safetensors"] == storage.load(job.artifact, "joint.safetensors")


def test_its_rows_are_its_own_forward_pass_under_each_tasks_head(trained: Any) -> None:
    found, storage, _ = trained
    (job,), (evaluation,) = found.joint, of_joint(found)
    evaluation.job.run(storage)
    tower = build_tower(ARCHS["tiny-rn"])
    tower.load_state_dict(load_joint(storage, job.artifact, "tiny-rn"))
    rows = evaluation_rows(evaluation, storage, {})
    assert [row["task"] for row in rows] == ["digits", "textures"]
    for row, key in zip(rows, PAIR, strict=True):
        images, labels = split(row["task"], "test")
        z = torch.from_numpy(embed(tower, images, ARCHS["tiny-rn"]))
        head = torch.from_numpy(tasks.read_array(storage, found.models[0]["tiny-rn"].heads[key], heads.FILE))
        assert row["merging_accuracy"] == pytest.approx(accuracy(z, head, torch.from_numpy(labels)))
        assert (row["num_samples"], row["n"], row["buffers"]) == (len(labels), 2, "")
        assert row["ensembling_accuracy"] is row["gap"] is None
        assert row["parameters"] == sum(p.numel() for p in tower.parameters())
    bits = read_correctness(storage, f"{evaluation.job.artifact.path}/{CORRECT_FILE}")
    assert len(bits) == 2
    for row in rows:
        right = bits[f"{row['task']}|global|||"].right("merging")
        assert right is not None
        assert row["merging_accuracy"] == pytest.approx(100 * right.mean())


def test_a_training_that_fails_is_told_in_its_rows(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, storage, _ = trained
    (job,), (evaluation,) = found.joint, of_joint(found)
    wild = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, learning_rate=1e30))
    with pytest.raises(TrainingDiverged, match=r"tiny-rn\.digits@seed-0,textures@seed-0: epoch 1"):
        list(wild.steps(storage, Worker(), None))
    failures = {job.artifact.fingerprint: "TrainingDiverged: it did"}
    assert runnable([evaluation.job], failures) == []
    (status,) = {row["status"] for row in evaluation_rows(evaluation, Storage(str(tmp_path)), failures)}
    assert status == "failed: joint tiny-rn.digits@seed-0,textures@seed-0: TrainingDiverged: it did"
    assert isinstance(job, JointJob)
