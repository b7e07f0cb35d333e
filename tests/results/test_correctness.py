"""The file of bits: what is written is read, and what is damaged is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from neulig_ray.errors import InputError
from neulig_ray.evaluation.correct_images import correct_bytes
from neulig_ray.results import correctness
from neulig_ray.results.correctness import Correctness, row_key


@given(st.lists(st.integers(0, 70), unique=True), st.integers(0, 2**32 - 1))
def test_bits_come_back_in_the_order_of_the_split(positions: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    merging, ensembling = generator.random((2, len(positions))) < 0.5
    made = Correctness.of(np.array(positions, int), merging, ensembling)
    (found,) = correctness.read(correct_bytes({"a|task|||0": made}), "x").values()
    assert found == made
    assert found.count == len(positions)
    by_position = np.argsort(positions)
    for side, bits in (("merging", merging), ("ensembling", ensembling)):
        right = found.right(side)
        assert right is not None
        assert right.tolist() == bits[by_position].tolist()


def test_rows_are_of_the_same_images_where_their_bits_are() -> None:
    right = np.ones(3, bool)
    one, other = Correctness.of(np.array([4, 0, 9]), right), Correctness.of(np.array([0, 9, 4]), None, right)
    assert one.images == other.images
    assert one.images != Correctness.of(np.array([0, 4, 8]), right).images
    assert one.right("ensembling") is None


def test_an_image_counts_once() -> None:
    with pytest.raises(ValueError, match="once"):
        Correctness.of(np.array([1, 1]), np.ones(2, bool))


def test_a_row_has_one_name_as_measured_and_in_a_table() -> None:
    measured = {"task": "digits", "granularity": "batch-first", "buffers": "", "order_seed": 3, "seed": 0}
    assert row_key(measured) == "digits|batch-first||3|0"
    without = {**measured, "order_seed": None}
    table = pd.DataFrame([measured, without]).astype({"order_seed": "Int64", "seed": "Int64"})
    assert [row_key(row) for row in table.to_dict("records")] == [row_key(measured), row_key(without)]
    assert row_key(without) == "digits|batch-first|||0"


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = {key: Correctness.of(np.arange(9), np.arange(9) > 4) for key in ("a||||", "b||||")}
    assert correct_bytes(rows) == correct_bytes(dict(reversed(rows.items())))


ROW = "a|task|||0"
BITS = {f"{ROW}/images": np.array([255, 128], np.uint8), f"{ROW}/merging": np.array([1, 128], np.uint8)}
DAMAGED = {
    "cut short": (save(BITS)[:-1], "damaged"),
    "with more behind it": (save(BITS) + b"x", "damaged"),
    "empty": (b"", "damaged"),
    "no such file": (json.dumps({"a": 1}).encode(), "damaged"),
    "a row without images": (save({f"{ROW}/merging": np.array([1], np.uint8)}), "has merging alone"),
    "a row without answers": (save({f"{ROW}/images": np.array([1], np.uint8)}), "has images alone"),
    "too few answers": (save({**BITS, f"{ROW}/merging": np.array([1], np.uint8)}), "1 bytes.*fit 9 images"),
    "answers of no image": (save({**BITS, f"{ROW}/merging": np.array([1, 64], np.uint8)}), "fit 9 images"),
    "images of no end": (save({**BITS, f"{ROW}/images": np.array([255, 128, 0], np.uint8)}), "end with some"),
    "another dtype": (save({f"{ROW}/images": np.array([1], np.int32)}), "I32"),
    "another shape": (save({f"{ROW}/images": np.array([[1]], np.uint8)}), r"shape \[1, 1\]"),
    "another name": (save({"weight": np.array([1], np.uint8)}), "'weight'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name(case: str) -> None:
    data, reason = DAMAGED[case]
    with pytest.raises(InputError, match=rf"(?s)my/file.*{reason}"):
        correctness.read(data, "my/file")


def test_a_whole_file_is_read_and_one_beyond_the_bound_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = correctness.read(save(BITS), "x")[ROW].right("merging")
    assert found is not None
    assert found.tolist() == [False] * 7 + [True, True]
    monkeypatch.setattr(correctness, "LARGEST", 10)
    with pytest.raises(InputError, match="more than this package writes"):
        correctness.read(save(BITS), "x")
