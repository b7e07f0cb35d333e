"""Fusing: the mean of fine-tuned bodies as a new origin."""

import torch

from neulig_ray.merging import streamed


def _uniform(n: int) -> torch.Tensor:
    return torch.full((n,), 1.0 / n)


@streamed("fuse", paper="arXiv 2204.03044", elementwise=True, coefficients=_uniform)
def fuse(tensors: torch.Tensor) -> torch.Tensor:
    """The mean of the experts' bodies, from which a new task is fine-tuned.

    The numbers are those of `average`; the use is another: heads are dropped, and the fused model becomes an
    origin that stands in for the pre-trained one.
    """
    return tensors.mean(0)
