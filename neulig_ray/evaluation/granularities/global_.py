"""Granularity `global`: one static model, of the mean of the tasks' betas."""

from collections.abc import Iterator

import torch

from neulig_ray.evaluation.context import EvaluationContext
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, per_task
from neulig_ray.results.granularities import GRANULARITIES


def one_for_all(betas: Betas) -> dict[str, torch.Tensor]:
    return dict.fromkeys(betas.tasks, betas.everything)


@granularity(GRANULARITIES["global"], models=one_for_all)
def everything(context: EvaluationContext, betas: Betas) -> Iterator[Predictions]:
    return per_task(context, one_for_all(betas))
