"""NeuLig: what a trained ligand's CoopVecs do to the collaborators."""

from typing import Annotated, Literal

import torch

from neulig_ray.merging import gated
from neulig_ray.merging.options import About

Sees = Annotated[Literal["experts", "origin", "origin-blocks"], About("whose view of an image the gate has")]
Hidden = Annotated[int, About("units of the gate's hidden layer, 0 for a linear gate", at_least=0)]
Objective = Annotated[
    Literal["each", "sup", "semi", "route"], About("prediction term; each of the experiment's")
]
TopK = Annotated[Literal["all", "1", "2"], About("how many experts are used, those of the largest beta")]

PAPER = "arXiv 2503.01268 (ICCV 2025)"
THEORY = "where the beta-weighted offsets of the experts cancel, the gap is of second order in the offsets"


@gated("ligand", paper=PAPER, theory=THEORY)
def ligand(
    beta: torch.Tensor,
    *,
    gate: Annotated[
        Literal["experts", "origin", "origin-blocks"], About("whose view of an image it sees")
    ] = ("experts"),
    hidden: Annotated[int, About("units of its hidden layer, 0 for a linear gate", at_least=0)] = 0,
    objective: Annotated[
        Literal["each", "sup", "semi", "route"], About("its prediction term; each of the experiment's")
    ] = "each",
    top_k: Annotated[Literal["all", "1", "2"], About("experts of the largest beta that are used")] = "all",
) -> torch.Tensor:
    """One beta of a trained gate weighs parameters (merging) or embeddings (ensembling).

    `gate`, `hidden` and `objective` say which gate beta is of. With `top_k` the largest betas alone count,
    and sum to 1: as many experts are merged, or asked.
    """
    if top_k == "all" or int(top_k) >= beta.shape[-1]:
        return beta
    values, experts = beta.topk(int(top_k), dim=-1)
    return torch.zeros_like(beta).scatter(-1, experts, values / values.sum(-1, keepdim=True))


@gated("hard-routing", paper=f"{PAPER}, without merging", selects=True)
def hard_routing(beta: torch.Tensor) -> torch.Tensor:
    """The expert of the largest beta alone: selection without merging."""
    return torch.nn.functional.one_hot(beta.argmax(-1), beta.shape[-1]).to(beta.dtype)
