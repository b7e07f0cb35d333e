"""Averaging with a weight for each expert."""

import torch

from neulig_ray.merging import streamed
from neulig_ray.merging.expert_weights import GivenWeights, Normalize, resolve_weights
from neulig_ray.merging.models import Models


def _check(models: Models, *, weights: GivenWeights, normalize: bool) -> None:
    resolve_weights("weighted-average", weights, models.n, normalize)


def _lambdas(n: int, *, weights: GivenWeights, normalize: bool) -> torch.Tensor | None:
    found = resolve_weights("weighted-average", weights, n, normalize).float()
    # Weights of another sum scale the origin too: that is no combination of task vectors.
    return found if abs(float(found.sum()) - 1) < 1e-5 else None


@streamed(
    "weighted-average",
    paper="arXiv 2203.05482 (soups), arXiv 2111.09832",
    elementwise=True,
    symmetric=False,
    coefficients=_lambdas,
    precondition=_check,
)
def weighted_average(
    tensors: torch.Tensor, *, weights: GivenWeights, normalize: Normalize = True
) -> torch.Tensor:
    """The experts' parameters, each times its weight, w_1 theta_1 + ... + w_n theta_n.

    The weights are divided by their sum. With normalize false they are taken as they are, as in mergekit;
    then the ensemble's counterpart is defined only where they sum to 1.
    """
    return resolve_weights("weighted-average", weights, len(tensors), normalize).float() @ tensors
