"""Multi-SLERP: the mean direction of any number of models."""

import torch

from neulig_ray.merging import streamed
from neulig_ray.merging.expert_weights import Normalize, Weights, resolve_weights
from neulig_ray.merging.models import Models
from neulig_ray.merging.spherical import CANCELLED, Coefficients, On, check_base, coefficients, combine


def _check(models: Models, *, on: str, weights: Weights, normalize: bool) -> None:
    check_base("multi-slerp", models, on)
    resolve_weights("multi-slerp", weights, models.n, normalize)


def _survey(
    models: Models, *, on: On = "weights", weights: Weights = None, normalize: Normalize = True
) -> Coefficients:
    given = resolve_weights("multi-slerp", weights, models.n, normalize)

    def rule(norms: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        length = (given @ cosines @ given).clamp(min=0).sqrt()
        if length <= CANCELLED * given[norms > 0].sum():
            return given
        return torch.where(norms > 0, given / norms, 0) / length * (given @ norms)

    return coefficients(models, on, rule)


@streamed(
    "multi-slerp",
    paper="github.com/arcee-ai/mergekit (multislerp)",
    elementwise=True,
    survey=_survey,
    precondition=_check,
)
def multi_slerp(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor | None = None,
    name: str,
    survey: Coefficients,
    on: On = "weights",
) -> torch.Tensor:
    """The weighted mean of the models' directions, at the weighted mean of their norms, tensor by tensor.

    With u_i = x_i / |x_i|: sum_i w_i |x_i| times the unit vector of sum_i w_i u_i. mergekit's further step in
    the tangent space is always zero, since the tangents at that very point add up to zero. Where the
    directions cancel, the weighted sum of the x_i is taken (mergekit does so for two models and stops for
    more); tensors that are zero throughout stay zero.
    """
    return combine(tensors, base, on, survey[name])
