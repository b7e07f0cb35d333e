"""MagMax: of each entry, the largest change."""

import torch

from neulig_ray.merging import TENTHS, Scaling, streamed, tuned


@streamed("magmax", paper="arXiv 2407.06322", elementwise=True, symmetric=False)
def magmax(
    tensors: torch.Tensor, *, base: torch.Tensor, scaling: Scaling = tuned(0.5, TENTHS)
) -> torch.Tensor:
    """theta_0 + scaling * at each entry the task vector of largest magnitude.

    Of equal magnitudes the later expert wins, so that the order can matter. The paper fine-tunes the experts
    one after the other.
    """
    deltas = torch.sub(tensors, base)
    top, bottom = deltas.amax(0), deltas.amin(0)
    chosen = torch.where(top > -bottom, top, bottom)
    (tied,) = torch.nonzero((top == -bottom) & (top > 0), as_tuple=True)
    if len(tied):  # opposite numbers: the last of the largest
        columns = deltas[:, tied].flip(0)
        last = (columns.abs() == top[tied]).int().argmax(0, keepdim=True)
        chosen[tied] = columns.gather(0, last)[0]
    return torch.add(base, chosen, alpha=scaling)
