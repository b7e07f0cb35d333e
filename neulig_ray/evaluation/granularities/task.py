"""Granularity `task`: the mean of the val betas of a task serves the task."""

from collections.abc import Iterator

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, per_task
from neulig_ray.results.granularities import GRANULARITIES


@granularity(GRANULARITIES["task"], models=lambda betas: betas.tasks)
def task(context: EvaluationContext, betas: Betas) -> Iterator[Predictions]:
    return per_task(context, betas.tasks)
