"""Joint fine-tuning: the bound for one network."""

import torch

from neulig_ray.merging import reference
from neulig_ray.merging.prediction import head_logits


@reference(
    "joint",
    paper="arXiv 2310.02575 (traditional multi-task learning, the bound of its tables)",
    of="joint",
    needs=("base", "train images", "train labels"),
)
def joint(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """One fine-tuning of the origin on the tasks of all experts at once: the bound for one network."""
    return head_logits(embeddings, head)
