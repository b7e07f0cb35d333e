"""Granularity `batch-mean`: the mean beta of a batch of one task serves it."""

from collections.abc import Iterator, Sequence

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, mean_row, per_batch
from neulig_ray.results.granularities import GRANULARITIES


@granularity(GRANULARITIES["batch-mean"])
def batch_mean(
    context: EvaluationContext, betas: Betas, *, batch_size: int, order_seeds: Sequence[int]
) -> Iterator[Predictions]:
    return per_batch(context, betas, mean_row, batch_size, order_seeds)
