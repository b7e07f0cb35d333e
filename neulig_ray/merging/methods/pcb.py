"""PCB-Merging: parameters weighed by competition within and between tasks."""

from dataclasses import dataclass
from typing import Annotated

import torch

from neulig_ray.merging import About, Scaling, streamed, tuned
from neulig_ray.merging.models import Models
from neulig_ray.merging.trimming import magnitudes

GRID = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
_TINY = torch.finfo(torch.float32).tiny
_MOST_EXPERTS = 84  # n exp(n) is a float32


@dataclass(frozen=True)
class Ends:
    """Of each expert, float32 (n, 1): the magnitudes to clamp to, the competition's cut and its top."""

    low: torch.Tensor
    high: torch.Tensor
    cut: torch.Tensor
    top: torch.Tensor


def compete(
    tensors: torch.Tensor, base: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clamped task vectors and their balance beta = intra * inter, both (n, size).

    Of many experts, beta is relative to exp(n), where it would overflow; weights are shares of its range.
    """
    deltas = torch.sub(tensors, base)
    signs = deltas.sign()
    clamped = deltas.abs_().clamp_(low, high)
    relative = (clamped - low).div_((high - low).clamp(min=_TINY))
    intra = relative.square().mul_(len(tensors))
    if len(tensors) > _MOST_EXPERTS:
        intra -= len(tensors)
    intra.exp_()
    relative *= signs
    inter = torch.zeros_like(relative)
    for s, other in enumerate(relative):  # tanh(tau_t tau_s) is symmetric: each pair once
        competition = torch.mul(relative[s:], other).tanh_()
        inter[s] += competition.sum(0)
        inter[s + 1 :] += competition[1:]
    return clamped.mul_(signs), intra.mul_(inter)


def _survey(
    models: Models,
    *,
    density: Annotated[
        float, About("fraction of each task vector's entries that has a weight", above=0, at_most=1)
    ] = 0.05,
    outliers: Annotated[
        float, About("fraction of magnitudes clamped at either end", at_least=0, at_most=0.4)
    ] = 0.01,
) -> Ends:
    size, n = models.size, models.n
    ranks = torch.tensor([[int(size * outliers), max(int(size * (1 - outliers) - 1), 0)]]).expand(n, 2)
    low, high = models.order_statistics(magnitudes, ranks.contiguous(), "outliers").tensor_split(2, 1)

    def halves(tensors: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        _, beta = compete(tensors, base, low, high)
        return torch.cat((beta, -beta)).clamp_(min=0).abs_()  # abs: of -0, whose bits are not ordered

    # An order statistic of signed numbers is that of their positive minus that of their negative parts.
    cut = min(int(size * (1 - density)), size - 1)
    ranks = torch.tensor([[cut, size - 1]] * n + [[size - 1 - cut, 0]] * n)
    positive, negative = models.order_statistics(halves, ranks, "competition").chunk(2)
    cut_at, top = (positive - negative).tensor_split(2, 1)
    return Ends(low, high, cut_at, top)


@streamed("pcb", paper="arXiv 2410.02396", elementwise=True, survey=_survey)
def pcb(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    survey: Ends,
    scaling: Scaling = tuned(1.2, GRID),
) -> torch.Tensor:
    """Task vectors averaged with weights from the competition within each task and between tasks.

    The variant of the authors' `pcb_ES.py`: magnitudes are clamped to their 1 %
    and 99 % quantiles and scaled to [0, 1]; intra_t = exp(n a_t^2), inter_t = sum_s tanh(a_t a_s) with signs;
    of their product each task keeps the fraction `density` of largest entries, scaled to [0, 1], as weights.
    The scaling is theirs before their evolutionary search, whose bounds are the grid's ends.
    """
    clamped, beta = compete(tensors, base, survey.low, survey.high)
    weights = beta.sub_(survey.cut).clamp_(min=0).div_((survey.top - survey.cut).clamp(min=_TINY))
    merged = clamped.mul_(weights).sum(0).div_(weights.sum(0).clamp_(min=1e-12))
    return torch.add(base, merged, alpha=scaling)
