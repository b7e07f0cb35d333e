"""Whether models agree in a tensor, number by number; read piece by piece."""

from collections.abc import Sequence

import torch

from neulig_ray.weights.sources import Source

_PIECE = 1 << 20  # numbers of each model that are compared at a time


def agree(sources: Sequence[Source], name: str) -> bool:
    """Whether a tensor is the same in all sources: bit by bit, or in every value where dtypes differ."""
    first, *others = sources
    numel = first.specs[name].numel
    if any(other.specs[name].shape != first.specs[name].shape for other in others):
        return False
    for at in range(0, numel, _PIECE):
        stop = min(at + _PIECE, numel)
        mine = first.read(name, at, stop)
        if not all(_same(mine, other.read(name, at, stop)) for other in others):
            return False
    return True


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype == other.dtype:
        return torch.equal(*(t.cpu().contiguous().view(torch.uint8) for t in (one, other)))
    if one.dtype.is_floating_point:
        return torch.equal(
            *(t.cpu().double().nan_to_num(0.0, torch.inf, -torch.inf) for t in (one, other))
        ) and (torch.equal(one.cpu().isnan(), other.cpu().isnan()))
    return torch.equal(*(t.cpu().to(torch.int64) for t in (one, other)))
