"""Granularity `global`: one static model, of the mean of the tasks' betas."""

from collections.abc import Mapping

import torch

from neulig_ray.evaluation.granularity import model_granularity
from neulig_ray.evaluation.predictions import Betas
from neulig_ray.results.granularities import GRANULARITIES


@model_granularity(GRANULARITIES["global"])
def everything(betas: Betas) -> Mapping[str, torch.Tensor]:
    return dict.fromkeys(betas.tasks, betas.everything)
