"""Accuracies, ensembles, and merged models at every granularity, against plain code that shares nothing."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import gated_rows, merge_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_models import (
    ARCH,
    CLASSES,
    KEYS,
    SIZES,
    SmallTower,
    make_data,
    make_images,
    make_states,
    make_tower,
)

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.evaluation import metrics
from neulig_ray.evaluation.baseline_rows import evaluate_ensemble, evaluate_reference
from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.correct_images import CORRECT
from neulig_ray.evaluation.granularity import predict
from neulig_ray.evaluation.images import mixed_batches
from neulig_ray.evaluation.ligand_rows import evaluate_selection, task_accuracies
from neulig_ray.evaluation.predictions import Betas
from neulig_ray.experiment.config import GRANULARITIES
from neulig_ray.ligand.coopvec import coopvecs
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging import METHODS
from neulig_ray.merging.declare.streamed import StreamedMethod
from neulig_ray.merging.models import Tensors
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import preprocess
from neulig_ray.results.schema import INTERVAL, MEASURED
from neulig_ray.seeds import stable_generator

STATES = make_states()
STACK = ExpertStack.from_states(STATES)
TRAIN, VAL, TEST = (make_data(split, STATES) for split in ("train", "val", "test"))
IMAGES = make_images("test")
TASKS = ("a", "b", "c")


def gate(sharpness: float = 1.0) -> Portland:
    """A gate whose betas vary from image to image."""
    torch.manual_seed(4)
    return Portland([KEYS], sharpness * torch.randn(1, 3, 18), torch.zeros(1, 3))


GATE = gate()
BETA = {task: coopvecs(GATE, 0, TEST, task).numpy() for task in TASKS}
COMMON: dict[str, Any] = {"stack": STACK, "tower": SmallTower(), "arch": ARCH}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def head_of(task: str) -> np.ndarray:
    return TEST.heads[KEYS[TASKS.index(task)]]


def judge(z: np.ndarray, task: str) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True) @ head_of(task).T


def naive_merged_logits(beta: np.ndarray, task: str, rows: np.ndarray) -> np.ndarray:
    """A tower with loaded, plainly summed weights."""
    tower = SmallTower()
    state = {
        name: sum(float(b) * STATES[key][name].double() for b, key in zip(beta, KEYS, strict=True))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in STATES[KEYS[0]].items()
    }
    tower.load_state_dict(state)
    with torch.no_grad():
        return judge(tower.eval()(preprocess(IMAGES[task][rows].copy(), ARCH)).numpy(), task)


def naive_ensemble(beta: np.ndarray, task: str, rows: np.ndarray) -> np.ndarray:
    z = sum(beta[:, i : i + 1] * TEST.embeddings[key, task][rows] for i, key in enumerate(KEYS))
    return judge(np.asarray(z), task)


def percent(logits: np.ndarray, task: str, rows: np.ndarray | slice = slice(None)) -> float:
    return 100 * float((logits.argmax(-1) == TEST.labels[task][rows]).mean())


def bench() -> EvaluationContext:
    return EvaluationContext(KEYS, STACK, SmallTower(), ARCH, TEST, IMAGES)


def betas() -> Betas:
    return Betas(
        {task: coopvecs(GATE, 0, TEST, task) for task in TASKS},
        {task: coopvecs(GATE, 0, VAL, task).mean(0) for task in TASKS},
    )


def test_accuracies_are_percentages() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert metrics.accuracy(scores, torch.tensor([1, 1, 1, 1])) == 75.0
    assert metrics.agreement(scores, -scores) == 0.0
    assert metrics.agreement(scores, 2 * scores) == 100.0


def test_nan_is_an_error_and_never_class_zero() -> None:
    scores = torch.zeros(3, 2)
    scores[1, 1] = torch.nan
    for call in (
        lambda: metrics.accuracy(scores, torch.zeros(3), "the average of a and b"),
        lambda: metrics.agreement(torch.zeros(3, 2), scores),
        lambda: metrics.compare(scores, torch.zeros(3, 2), torch.zeros(3), "x"),
    ):
        with pytest.raises(TrainingDiverged, match="1 of 3 images are NaN"):
            call()


def test_kl_worked_out_by_hand() -> None:
    ensemble, merged = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert metrics.kl(ensemble, merged) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 1000))
def test_comparison_of_a_model_with_itself_and_kl_sign(images: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    one, other = torch.randn(2, images, classes)
    same = metrics.compare(one, one, torch.zeros(images), "x")
    assert (same["gap"], same["agreement"], same["kl"]) == (0.0, 100.0, pytest.approx(0, abs=1e-9))
    assert metrics.kl(one, other) >= 0


@pytest.mark.parametrize("task", TASKS)
def test_uniform_ensembles_by_other_code(task: str) -> None:
    z = np.stack([TEST.embeddings[key, task] for key in KEYS]).astype(np.float64)
    logits = np.stack([judge(part, task) for part in z])
    votes = np.stack([np.eye(CLASSES[task])[part.argmax(-1)] for part in logits]).sum(0)
    expected = {
        "ensemble-embedding": judge(z.mean(0), task),
        "ensemble-logit": logits.mean(0),
        "ensemble-probability": softmax(logits).mean(0),
        "ensemble-vote": votes + 1e-3 * softmax(logits).mean(0),
    }
    for name, scores in expected.items():
        (row,) = [r for r in evaluate_ensemble(METHODS[name], KEYS, TEST) if r["task"] == task]
        assert row["ensembling_accuracy"] == pytest.approx(percent(scores, task)), name
        assert (row["merging_accuracy"], row["granularity"], row["buffers"]) == (None, "global", "")


def test_votes_decide_and_the_mean_probability_decides_between_equal_votes() -> None:
    vote = METHODS["ensemble-vote"].function
    head = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    towards = {0: [1.0, 0.0], 1: [0.0, 1.0], "barely 0": [1.0, 0.99]}

    def winner(*experts: object) -> int:
        return int(vote(torch.tensor([[towards[e]] for e in experts]), head).argmax(-1))  # type: ignore[index]

    assert winner("barely 0", "barely 0", 1) == 0  # the mean probability alone says 1
    assert winner("barely 0", 1) == 1
    assert winner(1, "barely 0") == 1
    assert winner(0, 1, 1) == 1


def test_a_task_is_judged_by_the_head_of_its_own_class_count() -> None:
    for task in TASKS:
        rows = torch.arange(4)
        assert bench().logits(STACK.combine(torch.ones(3) / 3), task, rows).shape == (4, CLASSES[task])


@pytest.mark.parametrize("task", TASKS)
def test_a_merged_model_by_other_code(task: str) -> None:
    rows = np.array([5, 3, 11])
    found = bench().logits(bench().merge(torch.tensor(BETA[task][0])), task, torch.from_numpy(rows))
    np.testing.assert_allclose(found, naive_merged_logits(BETA[task][0], task, rows), rtol=1e-4, atol=1e-4)


def test_sample_merges_a_model_for_each_chosen_image() -> None:
    for found in predict("sample", bench(), betas(), sample_images=7, seed=3):
        rows = found.rows.numpy()
        assert len(set(rows)) == 7
        assert sorted(rows) == list(rows)
        naive = [naive_merged_logits(BETA[found.task][r], found.task, np.array([r])) for r in rows]
        np.testing.assert_allclose(found.logits, np.concatenate(naive), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("granularity", "rule"), [("batch-first", "first"), ("batch-mean", "mean")])
def test_batches_of_one_task_are_served_by_their_first_or_mean_beta(granularity: str, rule: str) -> None:
    for found in predict(granularity, bench(), betas(), batch_size=16):
        rows = found.rows.numpy()
        assert sorted(rows) == list(range(SIZES[found.task]))
        assert list(rows) != sorted(rows)
        for start in range(0, len(rows), 16):
            batch = rows[start : start + 16]
            own = BETA[found.task][batch]
            beta = own[0] if rule == "first" else own.mean(0)
            np.testing.assert_allclose(
                found.beta[start : start + 16], np.tile(beta, (len(batch), 1)), rtol=1e-5
            )
            naive = naive_merged_logits(beta, found.task, batch)
            np.testing.assert_allclose(found.logits[start : start + 16], naive, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("granularity", "rule"), [("batch-first-mixed", "first"), ("batch-mean-mixed", "mean")]
)
def test_mixed_batches_share_one_beta_and_every_image_meets_its_own_head(granularity: str, rule: str) -> None:
    everything = [(task, row) for task in TASKS for row in range(SIZES[task])]
    for order_seed in (0, 1):
        order = [
            everything[i] for i in stable_generator("order", order_seed, *TASKS).permutation(len(everything))
        ]
        expected: dict[tuple[str, int], np.ndarray] = {}
        for start in range(0, len(order), 16):
            batch = order[start : start + 16]
            own = np.stack([BETA[task][row] for task, row in batch])
            assert len({task for task, _ in batch}) > 1
            for task, row in batch:
                beta = own[0] if rule == "first" else own.mean(0)
                expected[task, row] = naive_merged_logits(beta, task, np.array([row]))[0]
        every = predict(granularity, bench(), betas(), batch_size=16, order_seeds=(0, 1))
        for found in (each for each in every if each.order_seed == order_seed):
            assert sorted(found.rows.tolist()) == list(range(SIZES[found.task]))
            naive = np.stack([expected[found.task, row] for row in found.rows.tolist()])
            np.testing.assert_allclose(found.logits, naive, rtol=1e-3, atol=1e-3)


def test_tasks_whose_images_differ_in_size_can_share_a_batch() -> None:
    large = np.random.default_rng(0).integers(0, 256, (SIZES["c"], 12, 12, 3), dtype=np.uint8)
    mixed = EvaluationContext(KEYS, STACK, SmallTower(), ARCH, TEST, {**IMAGES, "c": large})
    state = mixed.stack.combine(torch.tensor([0.2, 0.3, 0.5]))
    rows = {"c": torch.tensor([4, 1]), "a": torch.tensor([2]), "b": torch.tensor([], dtype=torch.long)}
    found = mixed.mixed_logits(state, rows)
    assert {task: tuple(logits.shape) for task, logits in found.items()} == {
        "c": (2, 2),
        "a": (1, 3),
        "b": (0, 5),
    }
    for task in "ca":
        torch.testing.assert_close(found[task], mixed.logits(state, task, rows[task]))


def test_task_and_global_take_their_betas_from_val() -> None:
    val = {task: coopvecs(GATE, 0, VAL, task).numpy().mean(0) for task in TASKS}
    everything = np.mean(list(val.values()), 0)
    for granularity in ("task", "global"):
        for found in predict(granularity, bench(), betas()):
            beta = val[found.task] if granularity == "task" else everything
            rows = np.arange(SIZES[found.task])
            naive = naive_merged_logits(beta, found.task, rows)
            np.testing.assert_allclose(found.logits, naive, rtol=1e-3, atol=1e-3)


def test_ligand_rows_by_other_code() -> None:
    rows = gated_rows(GATE, 0, **COMMON, val=VAL, test=TEST, images=IMAGES, batch_size=16, sample_images=20)
    orders = {name: 5 for name in GRANULARITIES if name.startswith("batch-")}
    keys = [(r["granularity"], r["task"], r["order_seed"]) for r in rows]
    assert len(set(keys)) == len(keys)
    for granularity in GRANULARITIES:
        found = [r for r in rows if r["granularity"] == granularity]
        assert len(found) == 3 * orders.get(granularity, 1)
        assert {r["batch_size"] for r in found} == ({16} if granularity in orders else {None})
    for row in rows:
        task = row["task"]
        known = {"task", "granularity", "buffers", "batch_size", "order_seed", "num_samples"}
        assert set(row) == known | {*MEASURED, *INTERVAL, CORRECT}
        assert row["buffers"] == "average"
        chosen = choose(SIZES[task], 20 if row["granularity"] == "sample" else None, 0, task).numpy()
        own = BETA[task][chosen]
        ensembled = naive_ensemble(own, task, chosen)
        assert row["num_samples"] == len(chosen)
        assert row["ensembling_accuracy"] == pytest.approx(percent(ensembled, task, chosen))
        assert row["gap"] == pytest.approx(row["ensembling_accuracy"] - row["merging_accuracy"])
        entropy = -(own * np.log(own)).sum(1).mean() / np.log(3)
        assert row["entropy"] == pytest.approx(entropy, rel=1e-4)
        routed = 100 * (own.argmax(1) == TASKS.index(task)).mean()
        assert row["routing_accuracy"] == pytest.approx(routed)
        if row["granularity"] == "sample":
            merged = np.concatenate(
                [naive_merged_logits(b, task, r[None]) for b, r in zip(own, chosen, strict=True)]
            )
            assert row["merging_accuracy"] == pytest.approx(percent(merged, task, chosen))
            assert row["matched_ensembling_accuracy"] == row["ensembling_accuracy"]
            assert row["agreement"] == pytest.approx(100 * (merged.argmax(1) == ensembled.argmax(1)).mean())
            p, q = softmax(ensembled), softmax(merged)
            assert row["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3)
        if row["granularity"] == "task":
            beta = coopvecs(GATE, 0, VAL, task).mean(0).expand(SIZES[task], -1).numpy()
            matched = percent(naive_ensemble(beta, task, chosen), task)
            assert row["matched_ensembling_accuracy"] == pytest.approx(matched)


def test_sample_images_larger_than_the_split_take_all() -> None:
    rows = gated_rows(
        GATE, 0, **COMMON, val=VAL, test=TEST, images=IMAGES, granularities=("sample",), sample_images=999
    )
    assert [r["num_samples"] for r in rows] == list(SIZES.values())


def test_a_saturated_gate_merges_as_it_ensembles_and_as_it_routes() -> None:
    sharp = gate(1e4)
    rows = gated_rows(
        sharp, 0, **COMMON, val=VAL, test=TEST, images=IMAGES, granularities=("sample",), sample_images=60
    )
    for row, routed in zip(rows, evaluate_selection(METHODS["hard-routing"], sharp, 0, TEST), strict=True):
        assert row["entropy"] < 0.01
        assert abs(row["gap"]) < 2
        assert row["merging_accuracy"] == pytest.approx(routed["merging_accuracy"], abs=2)


def test_hard_routing_by_other_code() -> None:
    for row in evaluate_selection(METHODS["hard-routing"], GATE, 0, TEST):
        task = row["task"]
        chosen = BETA[task].argmax(1)
        z = np.stack([TEST.embeddings[KEYS[c], task][i] for i, c in enumerate(chosen)])
        assert row["merging_accuracy"] == pytest.approx(percent(judge(z, task), task))
        assert row["ensembling_accuracy"] is None
        assert row["granularity"] == "sample"


def test_single_models_are_judged_from_their_stored_embeddings() -> None:
    row = evaluate_reference(METHODS["expert"], "b@seed-0", "b@seed-0", TEST)
    assert row["merging_accuracy"] == pytest.approx(
        percent(judge(TEST.embeddings["b@seed-0", "b"], "b"), "b")
    )
    assert (row["task"], row["granularity"], row["num_samples"]) == ("b", "global", 60)
    origin = np.random.default_rng(1).standard_normal((60, 6)).astype(np.float32)
    test = replace(TEST, embeddings={**TEST.embeddings, ("seed-0", "b"): origin})
    row = evaluate_reference(METHODS["zeroshot"], "seed-0", "b@seed-0", test)
    assert row["merging_accuracy"] == pytest.approx(percent(judge(origin, "b"), "b"))


def test_averaging_has_a_row_for_each_rule_for_batchnorm() -> None:
    unlabelled = make_images("train")
    rows, _ = merge_rows(
        METHODS["average"],
        KEYS,
        **COMMON,
        test=TEST,
        images=IMAGES,
        unlabelled=unlabelled,
        batch_size=50,
    )
    assert [(r["buffers"], r["task"]) for r in rows] == [
        (b, t) for b in ("average", "re-estimated") for t in TASKS
    ]
    third = np.full(3, 1 / 3)
    for row in rows:
        every = np.arange(SIZES[row["task"]])
        ensembled = naive_ensemble(np.tile(third, (len(every), 1)), row["task"], every)
        assert row["ensembling_accuracy"] == pytest.approx(percent(ensembled, row["task"]))
        if row["buffers"] == "average":
            merged = naive_merged_logits(third, row["task"], every)
            assert row["merging_accuracy"] == pytest.approx(percent(merged, row["task"]))
    kls = [r["kl"] for r in rows]
    assert kls[:3] != kls[3:]  # re-estimation does change the model


class WithoutBatchNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(192, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images.flatten(1))


def test_towers_without_batchnorm_have_one_row_and_empty_buffers() -> None:
    torch.manual_seed(0)
    stack = ExpertStack.from_states({key: WithoutBatchNorm().state_dict() for key in KEYS})
    rows, _ = merge_rows(
        METHODS["average"], KEYS, stack=stack, tower=WithoutBatchNorm(), arch=ARCH, test=TEST, images=IMAGES,
        unlabelled=make_images("train"),
    )  # fmt: skip
    assert [r["buffers"] for r in rows] == ["", "", ""]


def _towards(tensors: Tensors, *, base: torch.Tensor, scaling: float = 0.5) -> torch.Tensor:
    """Task arithmetic, for these tests."""
    return base + scaling * sum(t - base for t in tensors)


def test_the_counterpart_of_a_method_with_a_base_uses_the_origins_embeddings() -> None:
    def lambdas(n: int, scaling: float) -> torch.Tensor:
        return torch.full((n,), scaling)

    method = StreamedMethod("towards", _towards, needs=("base",), coefficients=lambdas)
    origin = {("seed-0", t): np.full((SIZES[t], 6), 0.5, np.float32) for t in TASKS}
    test = replace(TEST, embeddings={**TEST.embeddings, **origin})
    base = make_tower(8).state_dict()
    given_base = {"base": base, "options": {"scaling": 0.3}}
    whole = {**given_base, "origin": "seed-0"}
    rows, _ = merge_rows(method, KEYS, **COMMON, test=test, images=IMAGES, **whole)
    for row in rows:
        z = [TEST.embeddings[key, row["task"]] for key in KEYS]
        expected = judge(0.5 + 0.3 * sum(part - 0.5 for part in z), row["task"])
        assert row["ensembling_accuracy"] == pytest.approx(percent(expected, row["task"]))
    with pytest.raises(InputError, match="needs the origin's embeddings"):
        merge_rows(method, KEYS, **COMMON, test=test, images=IMAGES, **given_base)
    plain = replace(method, coefficients=None)
    rows, _ = merge_rows(plain, KEYS, **COMMON, test=test, images=IMAGES, **given_base)
    assert all(r["ensembling_accuracy"] is None and r["gap"] is None for r in rows)


def test_negative_variances_are_told_and_not_counted() -> None:
    states = copy.deepcopy(STATES)
    for state in states.values():
        state["bn.running_var"] -= 100
    with pytest.raises(TrainingDiverged, match=r"average of a@seed-0.*NaN"):
        merge_rows(
            METHODS["average"], KEYS, stack=ExpertStack.from_states(states), tower=SmallTower(), arch=ARCH,
            test=TEST, images=IMAGES,
        )  # fmt: skip


def test_what_a_search_optimises() -> None:
    pair = Portland([KEYS[:2], KEYS[1:]], torch.randn(2, 2, 12), torch.zeros(2, 2))
    images = make_images("val")
    found = task_accuracies(pair, **COMMON, val=VAL, images=images, limit=10)
    assert [(r["combination"], r["task"]) for r in found] == [
        (KEYS[:2], "a"), (KEYS[:2], "b"), (KEYS[1:], "b"), (KEYS[1:], "c")
    ]  # fmt: skip
    assert all(r["num_samples"] == 10 for r in found)
    every = task_accuracies(pair, **COMMON, val=VAL, images=images)
    test_rows = gated_rows(pair, 1, **COMMON, val=VAL, test=VAL, images=images, granularities=("task",))
    for row, tested in zip(every[2:], test_rows, strict=True):
        assert row["merging_accuracy"] == tested["merging_accuracy"]
        assert row["ensembling_accuracy"] == tested["ensembling_accuracy"]
    assert task_accuracies(pair, **COMMON, val=VAL, images=images, members=[1]) == every[2:]


def test_images_that_do_not_fit_the_labels_are_refused() -> None:
    short = {**IMAGES, "b": IMAGES["b"][:-1]}
    with pytest.raises(InputError, match="task 'b': 59 images for 60 labels"):
        EvaluationContext(KEYS, STACK, SmallTower(), ARCH, TEST, short)
    with pytest.raises(InputError, match="task 'c': no images"):
        EvaluationContext(KEYS, STACK, SmallTower(), ARCH, TEST, {t: IMAGES[t] for t in "ab"})


def test_an_unknown_granularity_names_the_near_miss() -> None:
    with pytest.raises(InputError, match="Did you mean 'batch-first'"):
        predict("batch-frist", bench(), betas())


def test_a_tower_is_neither_changed_nor_left_in_training() -> None:
    tower = make_tower(1).train()
    before = copy.deepcopy(tower.state_dict())
    gated_rows(
        GATE,
        0,
        stack=STACK,
        tower=tower,
        arch=ARCH,
        val=VAL,
        test=TEST,
        images=IMAGES,
        granularities=("task",),
    )
    merge_rows(
        METHODS["average"],
        KEYS,
        stack=STACK,
        tower=tower,
        arch=ARCH,
        test=TEST,
        images=IMAGES,
        unlabelled=IMAGES,
    )
    torch.testing.assert_close(tower.state_dict(), before, rtol=0, atol=0)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=3), batch_size=st.integers(1, 12))
def test_mixed_batches_are_those_of_all_pixels_at_once(sizes: list[int], batch_size: int) -> None:
    arch, count = ARCHS["tiny-rn"], sum(sizes)
    assume(count > 0)
    images = {
        str(task): np.random.default_rng(task).integers(0, 256, (size, 8 + task, 8, 3), dtype=np.uint8)
        for task, size in enumerate(sizes)
    }
    pixels = torch.cat([preprocess(part, arch) for part in images.values() if len(part)])
    order = torch.from_numpy(stable_generator("unlabelled", 3).permutation(count))
    expected = [pixels[rows] for rows in order.tensor_split(-(-count // batch_size))]
    found = list(mixed_batches(images, arch, batch_size, 3))
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
