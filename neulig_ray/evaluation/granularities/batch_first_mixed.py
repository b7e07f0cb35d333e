"""Granularity `batch-first-mixed`: the first beta of a batch of all tasks serves it."""

from collections.abc import Iterator, Sequence

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, first_row, per_mixed_batch
from neulig_ray.results.granularities import GRANULARITIES


@granularity(GRANULARITIES["batch-first-mixed"])
def batch_first_mixed(
    context: EvaluationContext, betas: Betas, *, batch_size: int, order_seeds: Sequence[int]
) -> Iterator[Predictions]:
    return per_mixed_batch(context, betas, first_row, batch_size, order_seeds)
