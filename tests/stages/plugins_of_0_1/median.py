from typing import Annotated

import torch

from neulig_ray.merging import About, Scaling, streamed, tuned

Quantile = Annotated[float, About("which task vector, by size: 0.5 is the median", at_least=0, at_most=1)]


@streamed("median", paper="none: an example", elementwise=True)
def median(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    quantile: Quantile = 0.5,
    scaling: Scaling = tuned(1.0, (0.5, 1.0, 1.5)),
) -> torch.Tensor:
    """The median of the task vectors, number by number."""
    return base + scaling * (tensors - base).quantile(quantile, dim=0)
