"""Simple averaging: the uniform soup."""

import torch

from neulig_ray.merging import streamed


def _uniform(n: int) -> torch.Tensor:
    return torch.full((n,), 1.0 / n)


@streamed(
    "average",
    paper="arXiv 2203.05482 (uniform soup), arXiv 2204.03044 (fusing)",
    elementwise=True,
    coefficients=_uniform,
)
def average(tensors: torch.Tensor) -> torch.Tensor:
    """The mean of the experts' parameters."""
    return tensors.mean(0)
