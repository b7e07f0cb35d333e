"""The package's own granularities, a file each; what a plugin's file needs to declare a further one."""

from neulig_ray.evaluation.granularity import granularity, model_granularity
from neulig_ray.evaluation.predictions import Betas, Predictions, per_batch, per_mixed_batch, per_task
from neulig_ray.results.granularities import Granularity

__all__ = [
    "Betas",
    "Granularity",
    "Predictions",
    "granularity",
    "model_granularity",
    "per_batch",
    "per_mixed_batch",
    "per_task",
]
