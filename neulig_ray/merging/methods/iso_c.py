"""Iso-C: the sum of the task matrices with a flat spectrum."""

import torch

from neulig_ray.merging import Scaling, Tensors, streamed, tuned
from neulig_ray.merging.spectral import (
    SCALINGS,
    Convolutions,
    is_matrix,
    leading,
    mean_strength,
    plus_mean,
    task_matrices,
)


@streamed("iso-c", paper="arXiv 2502.04959 (ICML 2025)")
def iso_c(
    tensors: Tensors,
    *,
    base: torch.Tensor,
    name: str,
    scaling: Scaling = tuned(1.0, SCALINGS),
    convolutions: Convolutions = "mean",
) -> torch.Tensor:
    """The sum of the task matrices, every singular value replaced by their mean.

    sum_t tau_t = U S V^T gives theta_0 + scaling * mean(S) U V^T, the mean over all min(out, in) values. All
    other tensors get scaling times the mean task vector.
    """
    if not is_matrix(name, base, convolutions):
        return plus_mean(tensors, base, scaling)
    total = torch.zeros_like(base).flatten(1)
    for matrix in task_matrices(tensors, base):
        total += matrix
    rank = min(total.shape)
    u, s, vt = leading(total, rank)
    return base + scaling * (mean_strength(s, rank) * (u @ vt)).view(base.shape)
