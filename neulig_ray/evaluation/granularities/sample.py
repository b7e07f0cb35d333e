"""Granularity `sample`: a merged model for each image, the plain way."""

from collections.abc import Iterator

import torch

from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.granularity import granularity
from neulig_ray.evaluation.predictions import Betas, Predictions
from neulig_ray.results.granularities import GRANULARITIES


@granularity(GRANULARITIES["sample"])
def sample(
    context: EvaluationContext, betas: Betas, *, sample_images: int | None, seed: int
) -> Iterator[Predictions]:
    """Of `sample_images` images of each task, which `seed` chooses."""
    for task in context.tasks:
        rows = choose(len(context.images[task]), sample_images, seed, task)
        beta = betas.images[task][rows]
        logits = [
            context.logits(context.merge(b), task, row[None]) for b, row in zip(beta, rows, strict=True)
        ]
        yield Predictions(task, rows, beta, torch.cat(logits))
