"""What a frozen head says of embeddings: the one formula of training, merging and evaluation."""

from torch import Tensor
from torch.nn.functional import normalize


def head_logits(embeddings: Tensor, head: Tensor) -> Tensor:
    """Logits (..., C) of embeddings (..., d) under a zero-shot head (C, d), which holds the logit scale."""
    return normalize(embeddings, dim=-1) @ head.T
