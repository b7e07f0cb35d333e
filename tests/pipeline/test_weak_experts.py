"""Experts that learned nothing are warned of: on the console, in results.json and in the report."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neulig_ray.cluster.run_context import Failures
from neulig_ray.evaluation.weakness import weakness
from neulig_ray.experiment.combinations import collaborator
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.plan import Plan, make_plan
from neulig_ray.pipeline.results import write_results
from neulig_ray.pipeline.weak_experts import weak_experts
from neulig_ray.report.html import render
from neulig_ray.results.schema import empty
from neulig_ray.stages.heads import FILE as HEAD_FILE
from neulig_ray.stages.imported_experts import ImportedExpert
from neulig_ray.stages.tasks import array_bytes
from neulig_ray.storage.storage import Storage

BALANCED = np.arange(200) % 10
SKEWED = np.array([0] * 180 + [1] * 20)


@pytest.mark.parametrize(
    ("expert", "origin", "labels", "classes", "words"),
    [
        (54.6, 54.6, BALANCED, 10, ["no better than its origin (54.6 % on val"]),  # learning rate 0
        (40.0, 54.6, BALANCED, 10, ["no better than its origin"]),
        (10.0, 5.0, BALANCED, 10, ["at chance (10.0 % on 200 val images"]),
        (14.0, 5.0, BALANCED, 10, ["at chance"]),  # within two standard deviations of 2.1 points
        (3.0, 5.0, BALANCED, 10, ["no better than its origin", " and at chance"]),
        (90.0, 50.0, SKEWED, 2, ["at chance", "always the same class 90.0 %"]),  # the frequent class, always
        (20.0, 5.0, np.arange(20) % 10, 10, ["at chance"]),  # few images: a wide margin
        (15.0, 5.0, BALANCED, 10, []),
        (99.0, 50.0, SKEWED, 2, []),
        (54.7, 54.6, BALANCED, 10, []),
    ],
)  # fmt: skip
def test_what_is_weak(
    expert: float, origin: float, labels: np.ndarray, classes: int, words: list[str]
) -> None:
    found = weakness(expert, origin, labels, classes)
    assert bool(found) == bool(words)
    for word in words:
        assert word in found


@pytest.fixture
def plan() -> Plan:
    made = make_plan(
        Experiment(
            name="weak", archs=("tiny-rn",), tasks=("digits", "textures"), n=(2,), methods=("average",)
        )
    )
    return dataclasses.replace(made, evaluations=[])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def see(plan: Plan, storage: Storage, task: str, expert: float, origin: float) -> None:
    """Commit what the stages leave of a task: val images that these shares of are seen rightly."""
    models, key = plan.models[0]["tiny-rn"], collaborator(task, "seed-0")
    labels = np.arange(100) % 4
    storage.commit(models.data[task], {"val-labels.npy": array_bytes(labels)}, {"notes": []})
    storage.commit(models.heads[key], {HEAD_FILE: array_bytes(np.eye(4, dtype=np.float32))}, {})
    for model, share in ((key, expert), ("seed-0", origin)):
        said = np.where(np.arange(100) < 100 * share, labels, (labels + 1) % 4)
        seen = np.eye(4, dtype=np.float32)[said]
        storage.commit(models.embeddings[model, task], {"val.npy": array_bytes(seen)}, {})


def test_each_weak_expert_has_a_sentence(plan: Plan, storage: Storage) -> None:
    see(plan, storage, "digits", expert=0.5, origin=0.5)
    see(plan, storage, "textures", expert=0.9, origin=0.5)
    (warning,) = weak_experts(plan, storage)
    assert warning.startswith("expert tiny-rn.digits@seed-0 is no better than its origin (50.0 % on val")
    assert "finetune.learning_rate" in warning


def test_an_imported_one_has_another_remedy(plan: Plan, storage: Storage) -> None:
    see(plan, storage, "digits", expert=0.25, origin=0.2)
    key = collaborator("digits", "seed-0")
    imported = ImportedExpert("tiny-rn", "digits", "seed-0", plan.models[0]["tiny-rn"].experts[key])
    (warning,) = weak_experts(dataclasses.replace(plan, imported=[imported]), storage)
    assert "at chance (25.0 % on 100 val images" in warning
    assert "finetune" not in warning
    assert "whether it is an expert of this task, arch and origin" in warning


def test_what_was_not_made_is_passed_over(plan: Plan, storage: Storage) -> None:
    assert weak_experts(plan, storage) == []
    see(plan, storage, "digits", expert=float("nan"), origin=0.5)
    broken = plan.models[0]["tiny-rn"].embeddings["digits@seed-0", "digits"]
    nothing = np.full((100, 4), np.nan, dtype=np.float32)
    storage.commit(broken, {"val.npy": array_bytes(nothing)}, {})
    assert weak_experts(plan, storage) == []


def test_results_and_report_carry_the_warnings(plan: Plan, storage: Storage) -> None:
    see(plan, storage, "digits", expert=0.5, origin=0.5)
    failures: Failures = {}
    table, about = write_results(plan, storage, failures)
    assert json.loads(storage.read("weak/results.json"))["warnings"] == about["warnings"] != []
    page = render({"weak": table}, {"weak": about})
    assert "<b>Warnings</b><ul><li>expert tiny-rn.digits@seed-0 is no better" in page
    assert "<b>Warnings</b>" not in render({"weak": empty()}, {"weak": {"warnings": []}})


@pytest.mark.ray
def test_the_console_tells_them(
    copied_storage: Path,
    neulig: Callable[..., tuple[int, str, str]],
    in_repository: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, _, err = neulig("evaluate", "smallest", "--storage", copied_storage)
    assert status == 0
    assert "warning" not in err, "two epochs are enough to learn something"
    told = "expert tiny-rn.digits@seed-0 is at chance (9.8 % on 297 val images, always the same class 10.1 %)"
    monkeypatch.setattr("neulig_ray.pipeline.results.weak_experts", lambda plan, storage: [told])
    status, out, err = neulig("evaluate", "smallest", "--storage", copied_storage, "--json")
    assert status == 0
    assert f"warning      {told}" in err.splitlines()
    assert {row["status"] for row in json.loads(out)} == {"ok"}
