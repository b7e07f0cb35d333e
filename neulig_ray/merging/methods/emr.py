"""EMR-Merging: elect, mask and rescale."""

from dataclasses import dataclass

import torch

from neulig_ray.merging import masked
from neulig_ray.merging.models import Models


@dataclass(frozen=True)
class Rescalers:
    """r_t, float32 (n,)."""

    rescalers: torch.Tensor


def unify(tensors: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The elected signs (size,), the largest magnitudes of that sign (size,), and [tau_t agrees] (n, size).

    The agreement is float32, 0 or 1. A sum that is zero elects -, as in the authors' code.
    """
    deltas = torch.sub(tensors, base)
    signs = deltas.sum(0).sign_().sub_(0.5).sign_()
    agreeing = deltas.mul_(signs).clamp_(min=0)
    largest = agreeing.amax(0)
    return signs, largest, agreeing.sign_()


def _survey(models: Models) -> Rescalers:
    def sizes(tensors: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        _, largest, present = unify(tensors, base)
        found = torch.stack((torch.sub(tensors, base).abs_().sum(1), present @ largest)).double()
        if not found.isfinite().all():  # of large numbers float32 holds no sum
            magnitudes = torch.sub(tensors, base).abs_().double()
            found = torch.stack((magnitudes.sum(1), present.double() @ largest.double()))
        return found

    # Means over tensors are added up: each tensor weighs the same, whatever its size.
    sums = torch.zeros(2, models.n, dtype=torch.float64)
    for piece, found in models.map("rescalers", sizes, elementwise=True):
        sums += found / max(models.specs[piece.name].numel, 1)
    own, shared = sums
    return Rescalers(torch.where(shared > 0, own / shared, 1.0).float())


@masked("emr", paper="arXiv 2405.17461", survey=_survey)
def emr(tensors: torch.Tensor, *, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """theta_0 + r_t m_t * tau for task t: tau has the elected signs and the largest magnitudes that agree.

    m_t is where task t's own vector has the elected sign; r_t makes the masked
    vector as large as the task's own: the ratio of sums, over tensors, of mean magnitudes. Nothing is tuned.
    """
    signs, largest, present = unify(tensors, base)
    return largest.mul_(signs), present > 0
