"""TIES's election: one sign for each entry, and the experts that agree with it merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from neulig_ray.merging.models import Models
from neulig_ray.merging.trimming import Cutoffs, Scope, Threshold, cutoffs, drop

SignTies = Literal["majority", "zero", "positive"]
Aggregate = Literal["mean", "sum", "max"]


def elect(deltas: torch.Tensor, tie: float) -> torch.Tensor:
    """The signs (size,) of the sums of trimmed deltas (n, size); `tie` (-1, 0 or 1) where a sum is zero."""
    signs = deltas.sum(0).sign_()
    return signs.add_(tie / 2).sign_() if tie else signs


def merge_agreeing(
    deltas: torch.Tensor, signs: torch.Tensor, aggregate: Aggregate, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean, sum or maximum, at each entry, of those of the deltas (n, size) that have its sign.

    Zeros never count. With weights (n,), by which the deltas are multiplied already, the mean divides by the
    weights of those that agree. Overwrites `deltas`; returns (size,).
    """
    agreeing = deltas.mul_(signs).clamp_(min=0)
    if aggregate == "max":
        return agreeing.amax(0).mul_(signs)
    total = agreeing.sum(0)
    if aggregate == "mean":
        present = agreeing.sign_()
        count = present.sum(0) if weights is None else weights @ present
        total /= count.clamp_(min=1 if weights is None else torch.finfo(torch.float32).tiny)
    return total.mul_(signs)


def balance(deltas: torch.Tensor) -> int:
    """How many more entries of trimmed deltas (n, size) elect + than -."""
    return int(elect(deltas, 0).sum())


def majority(balances: Sequence[int]) -> float:
    """The sign of most entries, of the balances of all pieces.

    Where they are even the authors' code takes the entries below zero.
    """
    return 1.0 if sum(balances) > 0 else -1.0


def tie_without_vote(sign_ties: SignTies, n: int) -> float | None:
    """The sign of entries whose sum is zero, as far as it is known without a pass; None for the majority's.

    One expert's sum is zero only where it is zero itself: any sign will do.
    """
    if sign_ties == "majority":
        return None if n > 1 else 1.0
    return 0.0 if sign_ties == "zero" else 1.0


@dataclass(frozen=True)
class Election:
    """What TIES finds in its first passes: what to trim, and the sign where the sum of an entry is zero."""

    cutoffs: Cutoffs
    tie: float

    def trimmed(
        self, tensors: torch.Tensor, base: torch.Tensor, name: str, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The trimmed task vectors (n, size) of a piece, times the weights (n,) if there are."""
        deltas = drop(torch.sub(tensors, base), self.cutoffs.of(name))
        return deltas if weights is None else deltas.mul_(weights[:, None])

    def merged(
        self,
        tensors: torch.Tensor,
        base: torch.Tensor,
        name: str,
        aggregate: Aggregate,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """TIES's task vector (size,) of a piece."""
        deltas = self.trimmed(tensors, base, name, weights)
        return merge_agreeing(deltas, elect(deltas, self.tie), aggregate, weights)


def hold_election(
    models: Models,
    density: float,
    scope: Scope = "vector",
    threshold: Threshold = "inclusive",
    sign_ties: SignTies = "majority",
    weights: torch.Tensor | None = None,
) -> Election:
    """Two passes for the thresholds of whole vectors, or one for those of tensors; one for the majority."""
    found = cutoffs(models, density, scope, threshold)
    if (tie := tie_without_vote(sign_ties, models.n)) is not None:
        return Election(found, tie)
    election = Election(found, 0.0)

    def count(tensors: torch.Tensor, **known: Any) -> int:
        return balance(election.trimmed(tensors, known["base"], known["name"], weights))

    balances = models.map("majority sign", count, elementwise=True)
    return Election(found, majority([found for _, found in balances]))
