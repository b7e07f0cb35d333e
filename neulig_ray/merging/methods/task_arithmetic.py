"""Task arithmetic: the task vectors added up."""

import torch

from neulig_ray.merging import TENTHS, Scaling, streamed, tuned


def _lambdas(n: int, *, scaling: float) -> torch.Tensor:
    return torch.full((n,), scaling)


@streamed("task-arithmetic", paper="arXiv 2212.04089", elementwise=True, coefficients=_lambdas)
def task_arithmetic(
    tensors: torch.Tensor, *, base: torch.Tensor, scaling: Scaling = tuned(0.3, TENTHS)
) -> torch.Tensor:
    """theta_0 + scaling * sum of the task vectors (section 4.2 of the paper).

    The paper chooses the scaling on held-out data; 0.3 is what later work takes where it has none.
    """
    return torch.add(base, torch.sub(tensors, base).sum(0), alpha=scaling)
