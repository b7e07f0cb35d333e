"""DARE's first half: task vectors that lose entries, at random or the smallest, and are rescaled."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from neulig_ray.merging.models import Models
from neulig_ray.merging.trimming import Cutoffs, cutoffs_from, drop, tensor_order_statistics

Strategy = Literal["random", "magnitude"]
Rescale = Literal["expected", "l1", "none"]


def kept(seed: int, name: str, expert: int, start: int, size: int, density: float) -> torch.Tensor:
    """Which of a tensor's entries start..start + size are kept, bool (size,), each with chance `density`.

    A function of its arguments, drawn for each entry's place alone: pieces and threads do not matter.
    """
    key = hashlib.sha256(f"{seed}/{expert}/{name}".encode()).digest()[:16]
    # Philox counts blocks of four 64-bit numbers: of eight entries.
    block, skipped = divmod(start, 8)
    bits = np.random.Philox(key=int.from_bytes(key, "little"), counter=block)
    drawn = bits.random_raw(-(-(skipped + size) // 2)).view(np.uint32)[skipped : skipped + size]
    return torch.from_numpy(drawn < np.uint32(min(density * 2**32, 2**32 - 1)))


@dataclass(frozen=True)
class Dropping:
    """What is dropped: at random, unless there are cutoffs; and the factor of the rest.

    `factors`: of each tensor, one for each expert, float32 (n,); where a tensor has none, `factor`.
    """

    density: float
    seed: int
    cutoffs: Cutoffs | None = None
    factor: float = 1.0
    factors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, tensors: torch.Tensor, base: torch.Tensor, name: str, start: int) -> torch.Tensor:
        """What is left of a piece's task vectors, rescaled, (n, size)."""
        factors = self.factors.get(name)
        left = self._left(torch.sub(tensors, base), name, start)
        return left.mul_(self.factor if factors is None else factors[:, None])

    def _left(self, deltas: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if self.density == 1:
            return deltas
        if self.cutoffs is not None:
            return drop(deltas, self.cutoffs.of(name))
        for expert, row in enumerate(deltas):
            row *= kept(self.seed, name, expert, start, len(row), self.density)
        return deltas


def plan_dropping(
    models: Models, density: float, strategy: Strategy, rescale: Rescale, seed: int
) -> Dropping:
    """One pass for the smallest magnitudes of each tensor, one for the L1 norms, where they are asked for."""
    cutoffs = _smallest(models, density) if strategy == "magnitude" else None
    if rescale == "expected":
        return Dropping(density, seed, cutoffs, 1 / density)
    plain = Dropping(density, seed, cutoffs)
    if rescale == "none" or density == 1:
        return plain

    def norms(tensors: torch.Tensor, base: torch.Tensor, name: str, start: int) -> torch.Tensor:
        left = plain(tensors, base, name, start)
        whole = torch.sub(tensors, base).abs_()
        found = torch.stack((whole.sum(1), left.abs_().sum(1))).double()
        if not found.isfinite().all():  # of large numbers float32 holds no sum
            found = torch.stack((whole.double().sum(1), left.double().sum(1)))
        return found

    sums: dict[str, torch.Tensor] = {}
    for piece, found in models.map("L1 norms", norms, elementwise=True):
        sums[piece.name] = sums.get(piece.name, 0) + found
    factors = {name: torch.where(left > 0, all_ / left, 1.0).float() for name, (all_, left) in sums.items()}
    return Dropping(density, seed, cutoffs, factors=factors)


def _smallest(models: Models, density: float) -> Cutoffs:
    """Drops, in each tensor, magnitudes up to the floor((1 - density) size)-th smallest."""

    def rank(size: int) -> tuple[int, ...]:
        dropped = int((1 - density) * size + 1e-6)  # 1 - 0.9 is a little less than 0.1
        return (dropped - 1,) if dropped else ()

    found = tensor_order_statistics(models, rank)
    tensors = {name: cutoffs_from(t[:, 0], "strict") for name, t in found.items() if t.numel()}
    return Cutoffs((-1.0,) * models.n, tensors)
