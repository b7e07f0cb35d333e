"""Granularity `batch-first`: the first beta of a batch of one task serves it, as in the reference."""

from collections.abc import Iterator, Sequence

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, first_row, per_batch
from neulig_ray.results.granularities import GRANULARITIES


@granularity(GRANULARITIES["batch-first"])
def batch_first(
    context: EvaluationContext, betas: Betas, *, batch_size: int, order_seeds: Sequence[int]
) -> Iterator[Predictions]:
    return per_batch(context, betas, first_row, batch_size, order_seeds)
