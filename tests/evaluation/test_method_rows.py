"""Methods on a combination: options chosen on val, models of each task, modules, what they are counted as."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import inputs_of, merge_rows
from small_models import ARCH, KEYS, SIZES, SmallTower, make_data, make_images, make_states, make_tower
from torch import nn

from neulig_ray.errors import NotFinite
from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.forward import embed_with
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.evaluation.method_models import Tuning
from neulig_ray.evaluation.re_estimation import with_new_statistics
from neulig_ray.merging import MergedModels, MergeInputs, Scaling, tuned
from neulig_ray.merging.declare.masked import MaskedMethod
from neulig_ray.merging.declare.routed import RoutedMethod
from neulig_ray.merging.declare.streamed import StreamedMethod
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.parameters import ExpertStack

STATES = make_states()
STACK = ExpertStack.from_states(STATES)
BASE = make_tower(8).state_dict()
VAL, TEST = (make_data(split, STATES) for split in ("val", "test"))
VAL_IMAGES, IMAGES = make_images("val"), make_images("test")
TASKS = ("a", "b", "c")
GRID = (-0.5, 0.0, 0.2, 0.6)
VAL_CONTEXT = EvaluationContext(KEYS, STACK, SmallTower(), ARCH, VAL, VAL_IMAGES)
INPUTS = inputs_of(KEYS, STACK, SmallTower(), BASE)
COMMON: dict[str, Any] = {
    "stack": STACK, "tower": SmallTower(), "arch": ARCH, "test": TEST, "images": IMAGES
}  # fmt: skip


def _towards(
    tensors: torch.Tensor, *, base: torch.Tensor, scaling: Scaling = tuned(0.2, GRID)
) -> torch.Tensor:
    return base + scaling * (tensors - base).sum(0)


TOWARDS = StreamedMethod("towards", _towards, needs=("base",), elementwise=True)


def _signs(
    tensors: torch.Tensor, *, base: torch.Tensor, least: float = tuned(0.0, (0.0, 0.1, 9.0))
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keeps, for each task, where its own task vector is larger than `least`."""
    return (tensors - base).sum(0), (tensors - base).abs() > least


SIGNS = MaskedMethod("signs", _signs, needs=("base", "task at test"))


def accuracies(state: Any, data: Any, images: Any, limit: int | None = None) -> dict[str, float]:
    """Of a model on every task, without the code under test's bench."""
    found = {}
    for key, task in zip(KEYS, TASKS, strict=True):
        tower = state if isinstance(state, nn.Module) else SmallTower()
        if not isinstance(state, nn.Module):
            tower.load_state_dict(state)
        z = embed_with(tower.eval(), {}, images[task], ARCH)[:limit]
        scores = nn.functional.normalize(z, dim=-1) @ torch.from_numpy(data.heads[key].copy()).T
        found[task] = 100 * float((scores.argmax(-1).numpy() == data.labels[task][:limit]).mean())
    return found


def test_the_scaling_is_the_one_that_val_likes_best_and_test_has_no_say() -> None:
    made = {s: merge_with(TOWARDS, STATES, BASE, {"scaling": s}) for s in GRID}
    val = {s: np.mean(list(accuracies(state, VAL, VAL_IMAGES).values())) for s, state in made.items()}
    best = max(GRID, key=lambda s: val[s])
    test = {s: np.mean(list(accuracies(state, TEST, IMAGES).values())) for s, state in made.items()}
    assert max(test, key=lambda s: test[s]) != best, "else the test could not tell val from test"
    tuning = Tuning({"scaling": GRID}, VAL_CONTEXT)
    rows, selected = merge_rows(TOWARDS, KEYS, **COMMON, base=BASE, tuning=tuning)
    assert selected == [{"buffers": "average", "options": {"scaling": best}}]
    expected = accuracies(made[best], TEST, IMAGES)
    assert {row["task"]: row["merging_accuracy"] for row in rows} == pytest.approx(expected)
    assert {row["granularity"] for row in rows} == {"global"}


@pytest.mark.parametrize("first", [True, False])
def test_a_scaling_that_gives_infinite_numbers_is_never_chosen_where_another_works(first: bool) -> None:
    grid = (1e39, 0.2) if first else (0.2, 1e39)
    tuning = Tuning({"scaling": grid}, VAL_CONTEXT)
    given = {"base": BASE, "unlabelled": make_images("train")}
    rows, selected = merge_rows(TOWARDS, KEYS, **COMMON, **given, tuning=tuning)
    assert [entry["options"] for entry in selected] == [{"scaling": 0.2}] * 2
    assert len(rows) == 6
    alone = Tuning({"scaling": (1e39,)}, VAL_CONTEXT)
    with pytest.raises(NotFinite, match=r"towards gives NaN or infinite values in .*1e\+39"):
        merge_rows(TOWARDS, KEYS, **COMMON, **given, tuning=alone)


def test_each_rule_for_buffers_makes_its_own_choice() -> None:
    unlabelled = make_images("train")
    given = {"base": BASE, "unlabelled": unlabelled}
    tuning = Tuning({"scaling": GRID}, VAL_CONTEXT)
    rows, selected = merge_rows(TOWARDS, KEYS, **COMMON, **given, tuning=tuning)
    by_rule = {entry["buffers"]: entry["options"]["scaling"] for entry in selected}
    assert by_rule.keys() == {"average", "re-estimated"}

    def val_of(scaling: float) -> float:
        merged = TOWARDS.run(INPUTS, {"scaling": scaling})
        anew = with_new_statistics(merged, SmallTower(), ARCH, unlabelled, 128, 0)
        return float(np.mean(list(accuracies(anew.by_task["a"], VAL, VAL_IMAGES).values())))

    assert by_rule["re-estimated"] == max(GRID, key=val_of)
    assert len(rows) == 6


def test_a_task_with_a_model_of_its_own_makes_its_own_choice() -> None:
    tuning = Tuning({"least": (0.0, 0.1, 9.0)}, VAL_CONTEXT)
    rows, selected = merge_rows(SIGNS, KEYS, **COMMON, base=BASE, tuning=tuning)
    chosen = {entry["task"]: entry["options"]["least"] for entry in selected}
    assert len(set(chosen.values())) > 1, "one choice for all would prove nothing"
    delta = {
        name: sum(STATES[key][name] - tensor for key in KEYS)
        for name, tensor in BASE.items()
        if tensor.is_floating_point() and "running" not in name
    }
    averaged = merge_with(TOWARDS, STATES, BASE)
    for row, key in zip(rows, KEYS, strict=True):
        reached = {}
        for least in (0.0, 0.1, 9.0):
            state = dict(averaged)
            for name, total in delta.items():
                own = (STATES[key][name] - BASE[name]).abs() > least
                state[name] = BASE[name] + own * total
            reached[least] = accuracies(state, VAL, VAL_IMAGES)[row["task"]]
            if least == chosen[row["task"]]:
                expected = accuracies(state, TEST, IMAGES)[row["task"]]
        assert max(reached, key=lambda least: reached[least]) == chosen[row["task"]]
        assert row["merging_accuracy"] == pytest.approx(expected)
        assert row["granularity"] == "task"


def test_masks_are_counted_as_bits() -> None:
    size = sum(p.numel() for p in SmallTower().parameters())
    statistics = 2 * 4 + 1  # running mean and variance, and the counter
    merged = SIGNS.run(INPUTS, {})
    bits = sum(3 * -(-p.numel() // 8) for p in SmallTower().parameters())
    assert merged.parameters == 2 * size + statistics + 3 + bits // 4


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = make_tower(5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert len(images) <= 16, "batches are as large as the evaluation says"
        return 2 * self.inner(images)


def test_a_module_is_judged_as_it_is() -> None:
    def route(inputs: MergeInputs, *, steps: int = 3) -> MergedModels:
        assert (tuple(inputs.labels), inputs.tasks, steps) == (KEYS, TASKS, 7)
        return MergedModels.shared(Doubled(), inputs, "batch-mean")

    method = RoutedMethod("doubled", route, needs=("unlabelled images",))
    rows, selected = merge_rows(
        method,
        KEYS,
        **COMMON,
        inputs={"images": {key: TaskImages(VAL_IMAGES[key[0]], ARCH) for key in KEYS}},
        options={"steps": 7},
        unlabelled=make_images("train"),
        batch_size=16,
    )
    expected = accuracies(Doubled().inner, TEST, IMAGES)
    assert [row["buffers"] for row in rows] == ["average"] * 3, "a module keeps its own statistics"
    for row in rows:
        assert row["merging_accuracy"] == pytest.approx(expected[row["task"]])
        assert (row["granularity"], row["batch_size"]) == ("batch-mean", 16)
    assert not selected
    kept = sum(t.numel() for t in (*Doubled().parameters(), *Doubled().buffers()))
    assert all(row["parameters"] == kept for row in rows)


def test_re_estimation_of_a_tasks_model_uses_its_own_images() -> None:
    unlabelled = make_images("train", {**SIZES, "a": 64})
    merged = SIGNS.run(INPUTS, {})
    anew = with_new_statistics(merged, SmallTower(), ARCH, unlabelled, 64, 0)
    other = {**unlabelled, "b": unlabelled["b"] // 2}
    again = with_new_statistics(merged, SmallTower(), ARCH, other, 64, 0)
    name = "bn.running_mean"
    assert torch.equal(anew.by_task["a"][name], again.by_task["a"][name])
    assert not torch.equal(anew.by_task["b"][name], again.by_task["b"][name])
    shared = replace(merged, granularity="global", by_task=dict.fromkeys(TASKS, merged.by_task["a"]))
    mixed = with_new_statistics(shared, SmallTower(), ARCH, unlabelled, 64, 0)
    assert len({id(state) for state in mixed.by_task.values()}) == 1
