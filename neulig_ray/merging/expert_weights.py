"""Weights of the models of a merge, as an option."""

from collections.abc import Sequence
from typing import Annotated

import torch

from neulig_ray.errors import InputError
from neulig_ray.merging.options import About

_SUBTRACTED = (
    "To subtract what an expert learnt, use task-arithmetic with the base: its scaling takes negative "
    "numbers, one for each expert"
)
GivenWeights = Annotated[
    tuple[float, ...],
    About(
        "weight of each expert, in the order of the merge", at_least=0, per_expert=True, instead=_SUBTRACTED
    ),
]
Weights = Annotated[
    tuple[float, ...] | None,
    About(
        "weight of each expert, in the order of the merge; without, all the same",
        at_least=0,
        per_expert=True,
        instead=_SUBTRACTED,
    ),
]
Normalize = Annotated[bool, About("whether the weights are divided by their sum")]


def resolve_weights(method: str, weights: Sequence[float] | None, n: int, normalize: bool) -> torch.Tensor:
    """The n weights, float64 (n,); equal ones are 1 / n where they are normalised and 1 elsewhere.

    Raises InputError for weights that are all zero and cannot be normalised.
    """
    found = torch.tensor([1.0] * n if weights is None else list(weights), dtype=torch.float64)
    if not normalize:
        return found
    if not found.any():
        raise InputError(f"{method}: the weights are all zero: give one expert a weight at least")
    total = found.sum()
    if not total.isfinite():
        return found / found.max() / (found / found.max()).sum()
    return found / total
