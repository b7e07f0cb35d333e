"""Single models that the merged ones are compared with."""

import torch

from neulig_ray.merging import reference
from neulig_ray.merging.prediction import head_logits


@reference("expert", paper="arXiv 2212.04089 (fine-tuning with a frozen zero-shot head)")
def expert(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """A task's own fine-tuned expert."""
    return head_logits(embeddings, head)


@reference("zeroshot", paper="arXiv 2103.00020 (CLIP)", of="origin")
def zeroshot(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """The origin before any fine-tuning: the floor."""
    return head_logits(embeddings, head)
