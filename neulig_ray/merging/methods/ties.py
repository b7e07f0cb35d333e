"""TIES: trim, elect a sign, merge those that agree."""

from typing import Annotated

import torch

from neulig_ray.merging import About, Density, Scaling, streamed, tuned
from neulig_ray.merging.elections import Aggregate, Election, SignTies, hold_election
from neulig_ray.merging.expert_weights import Weights
from neulig_ray.merging.models import Models
from neulig_ray.merging.trimming import Scope, Threshold

GRID = tuple(i / 10 for i in range(8, 31, 2))


def _factors(weights: tuple[float, ...] | None) -> torch.Tensor | None:
    return None if weights is None else torch.tensor(weights)


def _survey(
    models: Models,
    *,
    density: Density = 0.2,
    trim_scope: Annotated[
        Scope, About("what the density is taken of: all parameters, or each tensor")
    ] = "vector",
    threshold: Annotated[Threshold, About("whether entries on the threshold are kept")] = "inclusive",
    sign_ties: Annotated[SignTies, About("sign of entries whose sum is zero")] = "majority",
    weights: Weights = None,
) -> Election:
    return hold_election(models, density, trim_scope, threshold, sign_ties, _factors(weights))


@streamed("ties", paper="arXiv 2306.01708", elementwise=True, survey=_survey)
def ties(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    name: str,
    survey: Election,
    aggregate: Annotated[Aggregate, About("what is taken of the experts that agree")] = "mean",
    scaling: Scaling = tuned(1.0, GRID),
    weights: Weights = None,
) -> torch.Tensor:
    """Task vectors trimmed to their largest entries, each entry merged over the experts of one sign.

    As in the authors' code: the fraction `density` of each expert's whole vector is
    kept, with everything that equals its threshold; the sign is that of the sum, and where it is zero that of
    most entries of the model; zeros never count in the mean; scaling 1, or chosen on val between 0.8 and 3,
    here in steps of 0.2.

    With weights, each trimmed vector is multiplied by its own before the election, and the mean divides by
    the weights of the experts that agree. Others differ: the CLIP scripts of AdaMerging take aggregate "sum"
    and scaling 0.3; mergekit takes trim_scope "tensor", threshold "strict", sign_ties "positive".
    """
    merged = survey.merged(tensors, base, name, aggregate, _factors(weights))
    return torch.add(base, merged, alpha=scaling)
