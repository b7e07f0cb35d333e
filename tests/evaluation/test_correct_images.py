"""What lies beside a row: bits that give its accuracies again, and the interval of its gap."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from evaluations import gated_rows, merge_rows
from small_models import ARCH, KEYS, SIZES, SmallTower, make_data, make_images, make_states

from neulig_ray.evaluation import metrics
from neulig_ray.evaluation.baseline_rows import evaluate_ensemble, evaluate_reference
from neulig_ray.evaluation.context import choose
from neulig_ray.evaluation.correct_images import CORRECT, with_correct_images, without_bits
from neulig_ray.evaluation.ligand_rows import evaluate_selection
from neulig_ray.evaluation.rows import Row, new_row
from neulig_ray.ligand.coopvec import coopvecs
from neulig_ray.ligand.portland import Portland
from neulig_ray.merging import METHODS
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.results.correctness import Correctness, row_key
from neulig_ray.results.paired import difference

STATES = make_states()
STACK = ExpertStack.from_states(STATES)
VAL, TEST, IMAGES = make_data("val", STATES), make_data("test", STATES), make_images("test")
COMMON: dict[str, Any] = {
    "stack": STACK,
    "tower": SmallTower(),
    "arch": ARCH,
    "test": TEST,
    "images": IMAGES,
}
torch.manual_seed(4)
GATE = Portland([KEYS], torch.randn(1, 3, 18), torch.zeros(1, 3))


def every_row() -> list[Row]:
    """Rows of every kind of producer."""
    return [
        *gated_rows(GATE, 0, **COMMON, val=VAL, batch_size=16, sample_images=20),
        *evaluate_selection(METHODS["hard-routing"], GATE, 0, TEST),
        *merge_rows(METHODS["average"], KEYS, **COMMON).rows,
        *merge_rows(METHODS["ties"], KEYS, base=STATES[KEYS[0]], **COMMON).rows,
        *evaluate_ensemble(METHODS["ensemble-vote"], KEYS, TEST),
        evaluate_reference(METHODS["expert"], KEYS[1], KEYS[1], TEST),
    ]


def test_the_bits_give_the_accuracies_again() -> None:
    sides = []
    for row in every_row():
        bits: Correctness = row[CORRECT]
        assert bits.count == row["num_samples"]
        for side in ("merging", "ensembling"):
            right, reached = bits.right(side), row[f"{side}_accuracy"]
            assert (right is None) == (reached is None)
            if right is not None:
                assert 100.0 * right.mean() == pytest.approx(reached, abs=1e-12)
        sides.append((bits.merging is not None, bits.ensembling is not None))
    assert set(sides) == {(True, True), (True, False), (False, True)}


def test_rows_of_the_same_images_are_pairs_whatever_their_order() -> None:
    rows = gated_rows(GATE, 0, **COMMON, val=VAL, batch_size=16, sample_images=20)
    for task in ("a", "b", "c"):
        own = {(r["granularity"], r["order_seed"]): r[CORRECT] for r in rows if r["task"] == task}
        sample = own.pop(("sample", None))
        assert len({bits.images for bits in own.values()}) == 1
        assert len({bits.ensembling for bits in own.values()}) == 1, "every image's own beta, in every order"
        seen = np.unpackbits(np.frombuffer(sample.images, np.uint8)).nonzero()[0]
        assert seen.tolist() == choose(SIZES[task], 20, 0, task).tolist()
        whole = own["task", None].right("ensembling")
        assert whole is not None
        assert sample.right("ensembling").tolist() == whole[seen].tolist()


def test_the_interval_is_that_of_the_bits() -> None:
    for row in every_row():
        bits: Correctness = row[CORRECT]
        if row["gap"] is None or row.get("batch_size"):  # images of a batch are right or wrong together
            assert (row["gap_low"], row["gap_high"]) == (None, None)
            continue
        ensembling, merging = bits.right("ensembling"), bits.right("merging")
        assert ensembling is not None
        assert merging is not None
        found = difference([ensembling], [merging])
        assert (row["gap_low"], row["gap_high"]) == (found.low, found.high)
        assert found.points == pytest.approx(row["gap"], abs=1e-9)
        assert row["gap_low"] <= row["gap"] <= row["gap_high"]


def test_one_image_has_bits_and_no_interval() -> None:
    scores = torch.tensor([[0.0, 1.0]])
    row = with_correct_images(
        new_row("a", "task"), torch.tensor([3]), torch.tensor([1]), merging=scores, ensembling=-scores
    )
    assert (row["gap_low"], row["gap_high"]) == (None, None)
    assert row[CORRECT] == Correctness.of(np.array([3]), np.array([True]), np.array([False]))


def test_rows_are_stored_without_their_bits() -> None:
    rows = every_row()[:4]
    stored, bits = without_bits(rows)
    assert json.loads(json.dumps(stored)) == stored
    assert [row_key(row) for row in stored] == list(bits)
    assert list(bits.values()) == [row[CORRECT] for row in rows]
    skipped: Row = {"task": "a", "status": "skipped: no base"}
    assert without_bits([skipped]) == ([skipped], {})


def test_agreement_where_no_expert_has_nearly_all_the_weight() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    beta = torch.tensor([[0.5, 0.5], [0.89, 0.11], [0.95, 0.05]])
    assert metrics.agreement_unsure(one, other, beta) == 50.0
    assert metrics.agreement_unsure(one, other, beta[[2, 2, 2]]) is None


def test_agreement_of_rows_is_told_apart_by_the_gate() -> None:
    sharp = Portland(GATE.combinations, 3 * GATE.weight, GATE.bias)
    for granularity in ("task", "global"):
        for row in gated_rows(sharp, 0, **COMMON, val=VAL, granularities=(granularity,)):
            task = row["task"]
            unsure = (coopvecs(sharp, 0, TEST, task).max(1).values < 0.9).numpy()
            assert 0 < unsure.sum() < len(unsure)
            bits: Correctness = row[CORRECT]
            merging, ensembling = bits.right("merging"), bits.right("ensembling")
            assert merging is not None
            both = 100 * (merging & ensembling)[unsure].mean()  # right on both is an agreement
            neither = 100 * (~merging & ~ensembling)[unsure].mean()
            assert both <= row["agreement_unsure"] <= both + neither + 1e-9
            assert row["agreement_unsure"] != row["agreement"]
