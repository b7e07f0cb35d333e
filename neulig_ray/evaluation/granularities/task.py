"""Granularity `task`: one merged model for each task, of its mean beta on val."""

from collections.abc import Mapping

import torch

from neulig_ray.evaluation.granularity import model_granularity
from neulig_ray.evaluation.predictions import Betas
from neulig_ray.results.granularities import GRANULARITIES


@model_granularity(GRANULARITIES["task"])
def task(betas: Betas) -> Mapping[str, torch.Tensor]:
    return betas.tasks
