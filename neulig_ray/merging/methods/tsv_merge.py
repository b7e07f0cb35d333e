"""TSV-Merge: the leading singular directions of every task, made orthogonal to each other."""

import torch

from neulig_ray.merging import Scaling, Tensors, streamed, tuned
from neulig_ray.merging.spectral import (
    SCALINGS,
    Convolutions,
    is_matrix,
    leading,
    orthogonal,
    plus_mean,
    task_matrices,
)


@streamed("tsv-merge", paper="arXiv 2412.00081 (CVPR 2025)")
def tsv_merge(
    tensors: Tensors,
    *,
    base: torch.Tensor,
    name: str,
    scaling: Scaling = tuned(1.0, SCALINGS),
    convolutions: Convolutions = "mean",
) -> torch.Tensor:
    """Each task's leading singular directions, an equal share of the rank, without their interference.

    For a matrix of rank r, the floor(r / n) leading triplets of each task matrix are concatenated to U, S, V;
    U and V are replaced by the nearest matrices with orthonormal columns; Delta = U S V^T, and the merged
    matrix is theta_0 + scaling * Delta. All other tensors get scaling times the mean task vector, and so do
    matrices of a rank below n, of which no task could have a share (the authors leave them at theta_0).
    """
    share = min(base.flatten(1).shape) // len(tensors) if is_matrix(name, base, convolutions) else 0
    if not share:
        return plus_mean(tensors, base, scaling)
    parts = [leading(matrix, share) for matrix in task_matrices(tensors, base)]
    if not parts:
        return base.clone()
    u, s, vt = (list(part) for part in zip(*parts, strict=True))
    left, right = orthogonal(torch.cat(u, 1)), orthogonal(torch.cat(vt).T)
    return base + scaling * ((left * torch.cat(s)) @ right.T).view(base.shape)
