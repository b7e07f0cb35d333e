"""Task arithmetic: the task vectors added up."""

from typing import Annotated

import torch

from neulig_ray.merging import TENTHS, About, streamed, tuned

Scalings = Annotated[
    float | tuple[float, ...],
    About("scale of the task vectors: one for all, or one for each expert", per_expert=True),
]


def _lambdas(n: int, *, scaling: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(scaling).expand(n)


@streamed("task-arithmetic", paper="arXiv 2212.04089", elementwise=True, coefficients=_lambdas)
def task_arithmetic(
    tensors: torch.Tensor, *, base: torch.Tensor, scaling: Scalings = tuned(0.3, TENTHS)
) -> torch.Tensor:
    """theta_0 + scaling * sum of the task vectors.

    The paper chooses the scaling on held-out data; 0.3 is what later work takes where it has none. With one
    number for each expert, theta_0 + sum_t scaling_t tau_t: a negative one makes the model forget its task.
    """
    deltas = torch.sub(tensors, base)
    if isinstance(scaling, tuple):
        return base + torch.tensor(scaling) @ deltas
    return torch.add(base, deltas.sum(0), alpha=scaling)
