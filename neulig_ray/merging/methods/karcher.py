"""The Karcher mean: the mean on the sphere itself."""

from typing import Annotated

import torch

from neulig_ray.merging import About, streamed
from neulig_ray.merging.models import Models
from neulig_ray.merging.spherical import CANCELLED, TINY, Coefficients, coefficients, combine

_OPPOSITE = -1 + 1e-9  # a cosine


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
    Tensors that are zero have no direction, but count for the mean norm. Where the directions cancel, the way
    begins at the first of them. Of tensors of one number the mean norm gets the sign of most.
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
    if length(c) < max(tolerance, CANCELLED):  # they cancel: any of them is as good a beginning
        c = torch.nn.functional.one_hot(valid.double().argmax(), len(norms)).double()
    c = c / length(c)
    for _ in range(iterations):
        cosine = (cosines @ c).clamp(-1, 1)
        if cosine.min() < _OPPOSITE:
            c = torch.zeros_like(norms)
            c[valid] = _among_opposites(cosines[valid][:, valid], iterations, tolerance)
            break
        angle = cosine.acos()
        scale = torch.where(angle.sin() > TINY, weights * angle / angle.sin(), 0)  # its own logarithm is zero
        step = scale - (scale @ cosine) * c
        size = length(step)
        if size < tolerance:
            break
        c = size.cos() * c + size.sin() * step / size
        c = c / length(c)
    return torch.where(valid, c / norms, 0)


def _among_opposites(cosines: torch.Tensor, iterations: int, tolerance: float) -> torch.Tensor:
    """The coefficients (n,) of the mean direction of unit vectors of which some are nearly opposite to it.

    Near a point's antipode angles of inner products are noise, and steps of such leave the sphere: above all
    where n vectors lie in fewer dimensions, such as tensors of one number. So the vectors get coordinates in
    the space that they span. A point has no logarithm at its antipode: it does not pull there.
    """
    values, axes = torch.linalg.eigh(cosines)
    spanned = values > CANCELLED**2 * values.max()
    scale = values[spanned].sqrt()
    points = torch.nn.functional.normalize(axes[:, spanned] * scale, dim=1)
    start = points.mean(0)
    mean = torch.nn.functional.normalize(
        points[0] if start.norm() < max(tolerance, CANCELLED) else start, dim=0
    )
    for _ in range(iterations):
        cosine = points @ mean
        across = points - cosine[:, None] * mean
        sine = across.norm(dim=1)
        pull = torch.where(sine > TINY, torch.atan2(sine, cosine) / sine, 0)
        step = (pull[:, None] * across).mean(0)
        size = step.norm()
        if size < tolerance:
            break
        mean = torch.nn.functional.normalize(size.cos() * mean + size.sin() * step / size, dim=0)
    return axes[:, spanned] @ (mean / scale)
