"""Which entries of a task vector are large enough to be kept: exact thresholds of magnitudes.

A cutoff is the largest magnitude that is dropped; a negative one drops nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from neulig_ray.merging.models import Models, Tensors

Scope = Literal["vector", "tensor"]
Threshold = Literal["inclusive", "strict"]


@dataclass(frozen=True)
class Cutoffs:
    """One cutoff for each expert: the same in all tensors, unless a tensor has its own in `tensors`."""

    everywhere: tuple[float, ...]
    tensors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[float, ...]:
        return self.tensors.get(name, self.everywhere)


def nothing_dropped(n: int) -> Cutoffs:
    return Cutoffs((-1.0,) * n)


def magnitudes(tensors: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """|tau| of stacked experts (n, size)."""
    return torch.sub(tensors, base).abs_()


def drop(deltas: torch.Tensor, cutoffs: Sequence[float]) -> torch.Tensor:
    """Set what the cutoffs drop of deltas (n, size) to zero, in place; returns deltas."""
    for row, cutoff in zip(deltas, cutoffs, strict=True):
        if cutoff >= 0:  # hardshrink: one vectorised pass, where a comparison and a product take five
            torch.ops.aten.hardshrink.out(row, cutoff, out=row)
    return deltas


def cutoffs_from(thresholds: torch.Tensor, threshold: Threshold) -> tuple[float, ...]:
    """Thresholds float32 (n,): the smallest magnitudes kept (inclusive), or the largest dropped (strict)."""
    if threshold == "inclusive":
        thresholds = torch.nextafter(thresholds, torch.tensor(-1.0))
    return tuple(thresholds.tolist())


def rank_below(density: float, size: int) -> int:
    """The rank, from 0, of the largest of the size - floor(density size) smallest; -1 if there are none."""
    return size - int(density * size) - 1


def cutoffs(models: Models, density: float, scope: Scope, threshold: Threshold) -> Cutoffs:
    """What keeps the fraction `density` of the largest magnitudes of each whole vector, or of each tensor.

    With d numbers, k = d - floor(density d), and t the k-th smallest magnitude, "inclusive" keeps |tau| >= t,
    so one entry more than asked for, and all ties with it (the code of TIES); "strict" keeps |tau| > t.
    """

    def ranks(size: int) -> tuple[int, ...]:
        return (rank,) if (rank := rank_below(density, size)) >= 0 else ()

    if scope == "tensor":
        found = tensor_order_statistics(models, ranks)
        tensors = {name: cutoffs_from(t[:, 0], threshold) for name, t in found.items() if t.numel()}
        return Cutoffs((-1.0,) * models.n, tensors)
    wanted = torch.tensor([ranks(models.size)] * models.n)
    if not wanted.numel():
        return nothing_dropped(models.n)
    return Cutoffs(cutoffs_from(models.order_statistics(magnitudes, wanted)[:, 0], threshold))


def tensor_order_statistics(
    models: Models, ranks: Callable[[int], Sequence[int]], what: str = "thresholds"
) -> dict[str, torch.Tensor]:
    """For each tensor, float32 (n, r): the magnitudes of each expert's task vector at the ranks.

    `ranks(size)`: counted from 0 for the smallest of the tensor's `size` numbers. Each thread holds one
    expert's tensor at a time, and its base.
    """

    def select(tensors: Tensors, base: torch.Tensor) -> torch.Tensor:
        wanted = ranks(base.numel()) if base.numel() else ()
        found = torch.empty(len(tensors), len(wanted))
        for i in range(len(tensors) if wanted else 0):
            found[i] = ordered(torch.sub(tensors[i], base).abs_(), wanted)
        return found

    return {piece.name: found for piece, found in models.map(what, select, elementwise=False)}


def ordered(values: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """The numbers of the given ranks, float32 (r,); the order within `values` is lost."""
    flat, end = values.view(-1).numpy(), values.numel()
    for rank in sorted(set(ranks), reverse=True):  # each below the last: two at once take six times as long
        flat[:end].partition(rank)
        end = rank
    return values.view(-1)[list(ranks)]
