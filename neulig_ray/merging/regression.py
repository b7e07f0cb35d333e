"""RegMean's regression: one linear map for the inputs that n others have seen."""

from collections.abc import Iterable
from typing import Annotated

import torch

from neulig_ray.merging.models import Tensors
from neulig_ray.merging.options import About

OffDiagonal = Annotated[
    float, About("factor of the Gram matrices' entries off the diagonal", at_least=0, at_most=1)
]
Examples = Annotated[int, About("number of images of each task that are looked at", at_least=1)]
BATCH = 32  # images in one run of a network that is measured; results do not depend on it
# Of the mean diagonal. Directions that no input has stay with the average; others do not notice it.
_RIDGE = 1e-7


def regress(
    tensors: Tensors, grams: Iterable[torch.Tensor], offdiagonal: float, transposed: bool = False
) -> torch.Tensor:
    """The W that minimises sum_t ||X_t W^T - X_t W_t^T||^2 / rows_t, float32 in the tensors' shape.

    W_t: (out, in), or what reshapes to it, kernels (out, in, h, w) for example; `transposed`: (in, out).
    grams: X_t^T X_t / rows_t for each t, (in, in), or (g, in, in) where the rows of W_t form g groups with
    inputs of their own. `offdiagonal` shrinks them towards their diagonals (paper: alpha). Solved in float64
    for W less the mean of the W_t, so that the mean stands where no input decides.
    """

    def matrix(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double().T if transposed else tensor.double().flatten(1)

    mean = sum(matrix(tensor) for tensor in tensors) / len(tensors)
    assert isinstance(mean, torch.Tensor)
    left, right = None, None
    for tensor, given in zip(tensors, grams, strict=True):
        gram = given.double().reshape(-1, *given.shape[-2:])
        diagonal = gram.diagonal(dim1=1, dim2=2)
        gram = (gram * offdiagonal).diagonal_scatter(diagonal, dim1=1, dim2=2)
        offset = (matrix(tensor) - mean).view(len(gram), -1, gram.shape[-1])
        pulled = gram @ offset.transpose(1, 2)
        left = gram if left is None else left + gram
        right = pulled if right is None else right + pulled
    assert left is not None
    assert right is not None
    diagonal = left.diagonal(dim1=1, dim2=2)
    ridge = diagonal.mean(1, keepdim=True) * _RIDGE
    diagonal += torch.where(ridge > 0, ridge, 1)
    merged = mean + torch.linalg.solve(left, right).transpose(1, 2).reshape(mean.shape)
    merged = merged.T if transposed else merged
    return merged.reshape(tensors[0].shape).float()
