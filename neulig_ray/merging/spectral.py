"""Task vectors as matrices: what the methods that look at singular values share."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from torch.linalg import svd

from neulig_ray.merging.models import Tensors
from neulig_ray.merging.options import About

Convolutions = Annotated[
    Literal["mean", "reshape"],
    About("kernels: their mean task vector, as the authors do, or matrices (out, in * height * width)"),
]
# The authors search (0, 3] in thirty steps; each value costs an evaluation of the merged model on val.
SCALINGS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)

Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def is_matrix(name: str, tensor: torch.Tensor, convolutions: str) -> bool:
    """Whether the spectral methods look at a tensor's singular values.

    The authors' rule: two dimensions, and no "text_projection" in the name. Kernels, and whatever else has
    more dimensions, join where `convolutions` is "reshape".
    """
    wide = tensor.dim() == 2 or (tensor.dim() > 2 and convolutions == "reshape")
    return wide and "text_projection" not in name


def plus_mean(tensors: Tensors, base: torch.Tensor, scaling: float) -> torch.Tensor:
    """theta_0 + scaling * mean_t tau_t: what every other tensor becomes."""
    total = torch.zeros_like(base)
    for tensor in tensors:
        total += tensor - base
    return base + scaling * (total / len(tensors))


def task_matrices(tensors: Tensors, base: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each tau_t = theta_t - theta_0 as a matrix (out, in); zero matrices, which have no directions, not."""
    for tensor in tensors:
        matrix = (tensor - base).flatten(1)
        if matrix.any():
            yield matrix


def leading(matrix: torch.Tensor, count: int) -> Triplets:
    """At most `count` leading singular triplets U (out, k), S (k,), V^T (k, in) of a matrix (out, in).

    Directions whose singular value is zero but for rounding are arbitrary and left out.
    """
    u, s, vt = svd(matrix, full_matrices=False)
    count = min(count, int((s > _negligible(s)).sum()))
    return u[:, :count], s[:count], vt[:count]


def mean_strength(singular_values: torch.Tensor, rank: int) -> torch.Tensor:
    """Their sum over the rank, also where float32 has room for the mean alone."""
    total = singular_values.sum()
    return total / rank if total.isfinite() else (singular_values / rank).sum()


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns: U V^T of its singular vectors (orthogonal Procrustes).

    Where columns depend on each other, as those of two equal experts do, the columns only span the same
    space: the reference fills up with arbitrary directions there.
    """
    u, s, vt = svd(matrix, full_matrices=False)
    kept = s > _negligible(s)
    return u[:, kept] @ vt[kept]


def _negligible(singular_values: torch.Tensor) -> torch.Tensor:
    """What singular values, in descending order, must exceed to count as more than rounding.

    Those that are zero come out at up to 11 eps times the largest for 3072 x 768 in float32.
    """
    return 32 * torch.finfo(singular_values.dtype).eps * singular_values[:1]
