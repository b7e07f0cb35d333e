"""NeuLig: what a trained ligand's CoopVecs do to the collaborators."""

import torch

from neulig_ray.merging import gated

PAPER = "arXiv 2503.01268 (ICCV 2025)"
THEORY = "where the beta-weighted offsets of the experts cancel, the gap is of second order in the offsets"


@gated("ligand", paper=PAPER, theory=THEORY)
def ligand(beta: torch.Tensor) -> torch.Tensor:
    """One beta of a trained gate weighs parameters (merging) or embeddings (ensembling)."""
    return beta


@gated("hard-routing", paper=f"{PAPER}, without merging", selects=True)
def hard_routing(beta: torch.Tensor) -> torch.Tensor:
    """The expert of the largest beta alone: selection without merging."""
    return torch.nn.functional.one_hot(beta.argmax(-1), beta.shape[-1]).to(beta.dtype)
