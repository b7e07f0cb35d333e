"""Granularity `global`: one static model, of the mean of the tasks' betas."""

from collections.abc import Iterator

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, per_task
from neulig_ray.results.granularities import GRANULARITIES


@granularity(GRANULARITIES["global"])
def everything(context: EvaluationContext, betas: Betas) -> Iterator[Predictions]:
    return per_task(context, dict.fromkeys(context.tasks, betas.everything))
