"""DARE: drop most of each task vector and rescale the rest, then merge."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch

from neulig_ray.merging import TENTHS, About, Density, Scaling, Seed, streamed, tuned
from neulig_ray.merging.dropping import Dropping, Rescale, Strategy, plan_dropping
from neulig_ray.merging.elections import (
    Aggregate,
    SignTies,
    balance,
    elect,
    majority,
    merge_agreeing,
    tie_without_vote,
)
from neulig_ray.merging.models import Models
from neulig_ray.merging.trimming import Cutoffs, cutoffs_from, drop, nothing_dropped, rank_below

Then = Annotated[Literal["task-arithmetic", "ties"], About("what merges the task vectors that are left")]


@dataclass(frozen=True)
class DarePlan:
    """What is dropped, and for TIES what is trimmed of the rest and the sign where sums are zero."""

    dropping: Dropping
    trim: Cutoffs
    tie: float = 0.0

    def deltas(self, tensors: torch.Tensor, base: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return drop(self.dropping(tensors, base, name, start), self.trim.of(name))


def _survey(
    models: Models,
    *,
    density: Density = 0.5,
    strategy: Annotated[
        Strategy, About("which entries are dropped: any, or each tensor's smallest")
    ] = "random",
    rescale: Annotated[
        Rescale, About("the rest is divided by the density, brought to the tensor's L1 norm, or left")
    ] = "expected",
    seed: Seed = 0,
    then: Then = "task-arithmetic",
    trim: Annotated[
        float, About("fraction of the rest's whole vector that TIES keeps", above=0, at_most=1)
    ] = 0.2,
    sign_ties: Annotated[SignTies, About("of TIES: sign of entries whose sum is zero")] = "majority",
) -> DarePlan:
    dropping = plan_dropping(models, density, strategy, rescale, seed)
    untrimmed = DarePlan(dropping, nothing_dropped(models.n))
    if then == "task-arithmetic":
        return untrimmed
    plan, rank = untrimmed, rank_below(trim, models.size)
    if rank >= 0:

        def magnitudes(tensors: torch.Tensor, base: torch.Tensor, name: str, start: int) -> torch.Tensor:
            return dropping(tensors, base, name, start).abs_()

        thresholds = models.order_statistics(magnitudes, torch.full((models.n, 1), rank))[:, 0]
        plan = DarePlan(dropping, Cutoffs(cutoffs_from(thresholds, "inclusive")))
    if (tie := tie_without_vote(sign_ties, models.n)) is not None:
        return replace(plan, tie=tie)

    def count(tensors: torch.Tensor, **known: Any) -> int:
        return balance(plan.deltas(tensors, known["base"], known["name"], known["start"]))

    balances = models.map("majority sign", count, elementwise=True)
    return replace(plan, tie=majority([found for _, found in balances]))


@streamed("dare", paper="arXiv 2311.03099", elementwise=True, symmetric=False, survey=_survey)
def dare(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    name: str,
    start: int,
    survey: DarePlan,
    then: Then = "task-arithmetic",
    scaling: Scaling = tuned(0.3, TENTHS),
    aggregate: Annotated[Aggregate, About("of TIES: what is taken of the experts that agree")] = "mean",
) -> torch.Tensor:
    """Task vectors of which a random fraction is kept, divided by that fraction, merged by another method.

    The paper drops 90 % and more of language models' task vectors; the defaults are those for CLIP in
    FusionBench, which has scaling 0.5 and aggregate "sum" for TIES. "magnitude" is the authors' comparison,
    with the same factor; "l1" is mergekit's factor, and trim 1, aggregate "sum", sign_ties "positive" its
    dare_ties. The mask of an expert is drawn for its place among the experts, its tensor's name and the seed.
    """
    deltas = survey.deltas(tensors, base, name, start)
    if then == "task-arithmetic":
        return torch.add(base, deltas.sum(0), alpha=scaling)
    return torch.add(base, merge_agreeing(deltas, elect(deltas, survey.tie), aggregate), alpha=scaling)
