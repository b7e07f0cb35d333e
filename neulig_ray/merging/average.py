"""Simple averaging: the uniform soup."""

import torch

from neulig_ray.merging._base import Tensors, streamed


def _uniform(n: int) -> torch.Tensor:
    return torch.full((n,), 1.0 / n)


@streamed(
    "average", paper="arXiv 2203.05482 (uniform soup), arXiv 2204.03044 (fusing)", coefficients=_uniform
)
def average(tensors: Tensors) -> torch.Tensor:
    """The mean of the experts' parameters."""
    return torch.stack(list(tensors)).mean(0)
