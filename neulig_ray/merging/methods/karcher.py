"""The Karcher mean: the mean on the sphere itself."""

from typing import Annotated

import torch

from neulig_ray.merging import About, streamed
from neulig_ray.merging.models import Models
from neulig_ray.merging.spherical import TINY, Coefficients, coefficients, combine


def _survey(
    models: Models,
    *,
    iterations: Annotated[int, About("largest number of steps", at_least=0)] = 10,
    tolerance: Annotated[float, About("length in radians of a step that is the last one", above=0)] = 1e-5,
) -> Coefficients:
    def rule(norms: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        return norms.mean() * _mean_direction(norms, cosines, iterations, tolerance)

    return coefficients(models, "weights", rule)


@streamed(
    "karcher",
    paper="doi 10.1002/cpa.3160300502 (Karcher 1977)",
    elementwise=True,
    survey=_survey,
)
def karcher(tensors: torch.Tensor, *, name: str, survey: Coefficients) -> torch.Tensor:
    """The point of the sphere with the least squared angles to the models, at their mean norm, by tensor.

    From the mean of the unit vectors, steps to the mean of their logarithms, u <- exp_u(mean_i log_u(u_i)).
    Tensors that are zero have no direction, but count for the mean norm.
    """
    return combine(tensors, None, "weights", survey[name])


def _mean_direction(
    norms: torch.Tensor, cosines: torch.Tensor, iterations: int, tolerance: float
) -> torch.Tensor:
    """The mean direction's coefficients (n,) of the tensors: it stays in the span of their unit vectors."""
    valid = norms > 0
    if not valid.any():
        return torch.zeros_like(norms)
    weights = valid.double() / valid.sum()

    def length(c: torch.Tensor) -> torch.Tensor:
        return (c @ cosines @ c).clamp(min=0).sqrt()

    c = weights
    if length(c) < tolerance:  # they cancel: any of them is as good a beginning
        c = torch.nn.functional.one_hot(valid.double().argmax(), len(norms)).double()
    c = c / length(c)
    for _ in range(iterations):
        cosine = (cosines @ c).clamp(-1, 1)
        angle = cosine.acos()
        # A point has no logarithm at its antipode, and its own is zero.
        scale = torch.where(angle.sin() > TINY, weights * angle / angle.sin(), 0)
        step = scale - (scale @ cosine) * c
        size = length(step)
        if size < tolerance:
            break
        c = size.cos() * c + size.sin() * step / size
        c = c / length(c)
    return torch.where(valid, c / norms, 0)
