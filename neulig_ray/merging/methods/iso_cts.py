"""Iso-CTS: common and task-specific directions, all of one strength."""

from typing import Annotated

import torch

from neulig_ray.merging import About, Scaling, Tensors, streamed, tuned
from neulig_ray.merging.spectral import (
    SCALINGS,
    Convolutions,
    is_matrix,
    leading,
    mean_strength,
    orthogonal,
    plus_mean,
    task_matrices,
)


@streamed("iso-cts", paper="arXiv 2502.04959 (ICML 2025)")
def iso_cts(
    tensors: Tensors,
    *,
    base: torch.Tensor,
    name: str,
    scaling: Scaling = tuned(1.0, SCALINGS),
    common_fraction: Annotated[
        float, About("fraction of the rank that the common directions get", at_least=0, at_most=1)
    ] = 0.8,
    convolutions: Convolutions = "mean",
) -> torch.Tensor:
    """Leading directions of the sum and of what each task adds to them, all with the mean singular value.

    Of a matrix's rank r, the common subspace has the leading k triplets of sum_t tau_t; each task has the
    leading (r - k) / n of tau_t - U_k U_k^T tau_t. Their concatenated U and V are replaced by the nearest
    matrices with orthonormal columns, and the singular values by their mean s: theta_0 + scaling * s U V^T.
    k is r less the multiple of n that is nearest to (1 - common_fraction) r. All other tensors get scaling
    times the mean task vector.
    """
    if not is_matrix(name, base, convolutions):
        return plus_mean(tensors, base, scaling)
    total = torch.zeros_like(base).flatten(1)
    for matrix in task_matrices(tensors, base):
        total += matrix
    rank = min(total.shape)
    common, share = shares(rank, len(tensors), common_fraction)
    shared = leading(total, common)
    parts = []
    if share:
        for matrix in task_matrices(tensors, base):
            parts.append(leading(matrix - shared[0] @ (shared[0].T @ matrix), share))
    u, s, vt = (list(part) for part in zip(*parts, shared, strict=True))
    strength = mean_strength(torch.cat(s), rank)
    left, right = orthogonal(torch.cat(u, 1)), orthogonal(torch.cat(vt).T)
    return base + scaling * (strength * (left @ right.T)).view(base.shape)


def shares(rank: int, n: int, common_fraction: float) -> tuple[int, int]:
    """The numbers of common directions and of each task's own; halves go to the even number."""
    own = min(round((rank - int(rank * common_fraction)) / n), rank // n)
    return rank - n * own, own
