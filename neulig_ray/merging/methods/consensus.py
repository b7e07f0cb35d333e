"""Consensus merging: the multi-task vector where enough tasks use it."""

from typing import Annotated

import torch

from neulig_ray.merging import TENTHS, About, Scaling, streamed, tuned
from neulig_ray.merging.elections import Election
from neulig_ray.merging.tall import MaskLambda, multitask_survey, multitask_vector, task_masks


@streamed("consensus", paper="arXiv 2405.07813", elementwise=True, survey=multitask_survey)
def consensus(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    name: str,
    survey: Election | None,
    mask_lambda: MaskLambda = 0.4,
    agreement: Annotated[int, About("number of TALL masks that an entry must be in", at_least=0)] = 2,
    scaling: Scaling = tuned(0.3, TENTHS),
) -> torch.Tensor:
    """theta_0 + scaling * tau_MTL, of which only entries stay that at least `agreement` tasks use.

    With 2, what no task uses ("catastrophic" weights) and what one task alone uses ("selfish" ones) is
    removed. Agreement 0 is task arithmetic, or TIES; more than there are experts the origin. The authors take
    the mask lambda of each task that `tall-mask` chose on val: give those as one number for each expert.
    """
    deltas = torch.sub(tensors, base)
    vector = multitask_vector(deltas, tensors, base, name, survey)
    votes = task_masks(deltas, vector, mask_lambda).sum(0)
    return torch.add(base, vector.mul_(votes >= agreement), alpha=scaling)
