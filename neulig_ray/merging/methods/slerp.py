"""SLERP between two models."""

from typing import Annotated

import torch

from neulig_ray.errors import NotApplicable
from neulig_ray.merging import About, streamed
from neulig_ray.merging.models import Models
from neulig_ray.merging.spherical import CANCELLED, TINY, Coefficients, On, check_base, coefficients, combine


def _two(models: Models, *, on: str) -> None:
    if models.n != 2:
        raise NotApplicable(
            f"slerp merges exactly 2 models, not {models.n}: give two, or use multi-slerp or karcher"
        )
    check_base("slerp", models, on)


def _survey(
    models: Models,
    *,
    on: On = "weights",
    t: Annotated[
        float, About("position between the first model, 0, and the second, 1", at_least=0, at_most=1)
    ] = 0.5,
    lerp_above: Annotated[
        float, About("absolute cosine above which the way is straight", at_least=0, at_most=1)
    ] = 0.9995,
) -> Coefficients:
    way = torch.tensor([1 - t, t], dtype=torch.float64)

    def rule(norms: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        cosine = cosines[0, 1]
        angle = cosine.acos()
        least = TINY if cosine > 0 else CANCELLED
        if norms.min() == 0 or cosine.abs() > lerp_above or angle.sin() < least:
            return way
        return (way * angle).sin() / angle.sin()

    return coefficients(models, on, rule)


@streamed(
    "slerp",
    paper="doi 10.1145/325165.325242 (SIGGRAPH 1985)",
    elementwise=True,
    symmetric=False,
    survey=_survey,
    precondition=_two,
)
def slerp(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor | None = None,
    name: str,
    survey: Coefficients,
    on: On = "weights",
) -> torch.Tensor:
    """Spherical interpolation between two models, tensor by tensor.

    With phi the angle between a and b, (sin((1 - t) phi) a + sin(t phi) b) / sin(phi): as in mergekit, the
    coefficients are those of the unit vectors, applied to a and b themselves. Where the absolute cosine
    exceeds `lerp_above`, where the sine vanishes, and where a or b is zero and has no direction,
    (1 - t) a + t b.

    Models fine-tuned from one origin have cosines near 1, so that on weights most tensors are averaged.
    `on="deltas"` interpolates their task vectors: with `lerp_above=1`, mergekit's nuslerp.
    """
    return combine(tensors, base, on, survey[name])
