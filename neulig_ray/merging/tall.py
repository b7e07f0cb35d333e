"""What TALL masks and Consensus merging share: the multi-task vector, and which entries each task uses."""

from typing import Annotated, Literal

import torch

from neulig_ray.merging import About
from neulig_ray.merging.elections import Election, hold_election
from neulig_ray.merging.models import Models

MultiTask = Annotated[
    Literal["sum", "ties"], About("the multi-task vector: the sum of all, or TIES with sums")
]
TiesDensity = Annotated[
    float, About('fraction of each whole vector that is kept, of tau_mtl "ties" alone', above=0, at_most=1)
]
MaskLambda = Annotated[
    float | tuple[float, ...],
    About(
        "how far an expert's entry must outweigh the others', larger is sparser", at_least=0, per_expert=True
    ),
]
Strict = Annotated[bool, About("whether entries must outweigh the others', or may equal them")]
MASK_LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)


def multitask_survey(
    models: Models, *, tau_mtl: MultiTask = "sum", density: TiesDensity = 0.2
) -> Election | None:
    """What TIES needs to know before; the sum needs nothing."""
    return hold_election(models, density) if tau_mtl == "ties" else None


def multitask_vector(
    deltas: torch.Tensor, tensors: torch.Tensor, base: torch.Tensor, name: str, election: Election | None
) -> torch.Tensor:
    """tau_MTL (size,): the sum of the task vectors (n, size), or TIES's with the sum of those that agree."""
    return deltas.sum(0) if election is None else election.merged(tensors, base, name, "sum")


def task_masks(
    deltas: torch.Tensor, vector: torch.Tensor, mask_lambda: float | tuple[float, ...], strict: bool = True
) -> torch.Tensor:
    """m_t = [|tau_t| > lambda_t |tau_MTL - tau_t|], bool (n, size). Overwrites `deltas`."""
    others = torch.sub(vector, deltas).abs_()
    others *= mask_lambda if isinstance(mask_lambda, float) else torch.tensor(mask_lambda)[:, None]
    own = deltas.abs_()
    return own > others if strict else own >= others
