"""TALL masks: each task's share of one multi-task vector, found again by a binary mask."""

import torch

from neulig_ray.merging import masked, tuned
from neulig_ray.merging.elections import Election
from neulig_ray.merging.tall import (
    MASK_LAMBDAS,
    MaskLambda,
    Strict,
    multitask_survey,
    multitask_vector,
    task_masks,
)


@masked("tall-mask", paper="arXiv 2405.07813", survey=multitask_survey)
def tall_mask(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    name: str,
    survey: Election | None,
    mask_lambda: MaskLambda = tuned(0.4, MASK_LAMBDAS),
    strict: Strict = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """theta_0 + m_t * tau_MTL for task t, with m_t where |tau_t| > lambda |tau_MTL - tau_t|.

    tau_MTL is the sum of the task vectors, not scaled. The authors choose lambda on
    val for each task by itself: give one number for each expert. Entries that nobody moved are in no mask;
    tact-merge has them in all (strict false).
    """
    deltas = torch.sub(tensors, base)
    vector = multitask_vector(deltas, tensors, base, name, survey)
    return vector, task_masks(deltas, vector, mask_lambda, strict)
