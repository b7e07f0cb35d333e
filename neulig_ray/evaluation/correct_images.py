"""Which images a row's accuracies count as right, and how far its gap is from chance."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from neulig_ray.evaluation.metrics import predictions
from neulig_ray.evaluation.rows import Row
from neulig_ray.results.correctness import Correctness, row_key
from neulig_ray.results.paired import NAN, bootstrap
from neulig_ray.weights.metadata import file_metadata
from neulig_ray.weights.tensor_writer import to_bytes

CORRECT = "correct"  # of a row on its way from the evaluation to its job, which stores the bits by themselves


def with_correct_images(
    row: Row,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    merging: torch.Tensor | None = None,
    ensembling: torch.Tensor | None = None,
) -> Row:
    """The row with its bits under CORRECT, and `gap_low` and `gap_high`, which need both sides.

    Where batches share a model there is no interval: their images are right or wrong together.

    `images` (N,): places in the split, in any order; `labels` (N,); the sides are logits or other scores
    (N, C). The interval is the 95 % paired bootstrap of ensembling minus merging over these images.
    """
    sides = {
        name: (predictions(scores) == labels).cpu().numpy()
        for name, scores in (("merging", merging), ("ensembling", ensembling))
        if scores is not None
    }
    both = len(sides) == 2 and row.get("batch_size") is None
    ends = bootstrap([sides["ensembling"].astype(float) - sides["merging"]]) if both else (NAN, NAN)
    low, high = (None if end != end else end for end in ends)
    bits = Correctness.of(images.cpu().numpy(), **sides)
    return {**row, "gap_low": low, "gap_high": high, CORRECT: bits}


def without_bits(rows: Iterable[Row]) -> tuple[list[Row], Mapping[str, Correctness]]:
    """The rows as they are stored, and the bits of those that have any, by `row_key`."""
    whole = list(rows)
    bits = {row_key(row): row[CORRECT] for row in whole if CORRECT in row}
    return [{name: value for name, value in row.items() if name != CORRECT} for row in whole], bits


def correct_bytes(rows: Mapping[str, Correctness]) -> bytes:
    """The file of an evaluation's bits, by `row_key`: the same bytes for the same rows."""
    parts = {
        f"{key}/{name}": torch.from_numpy(np.frombuffer(bits, np.uint8).copy())
        for key, row in rows.items()
        for name, bits in vars(row).items()
        if bits is not None
    }
    return to_bytes(parts, file_metadata())
