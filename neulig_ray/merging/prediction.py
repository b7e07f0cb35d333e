"""Prediction level: logits of a frozen head, and ensembles weighted by beta."""

import torch
from torch.nn.functional import normalize


def head_logits(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits (..., C) of embeddings (..., d) under a zero-shot head (C, d), which holds the logit scale."""
    return normalize(embeddings, dim=-1) @ head.T


def weighted_embedding(beta: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """sum_i beta_i z_i, (N, d): embeddings (n, N, d) under one beta (n,) or one for each image (N, n)."""
    weights = beta.T.unsqueeze(-1) if beta.dim() == 2 else beta[:, None, None]
    return (weights * embeddings).sum(0)


def ensemble_logits(beta: torch.Tensor, embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) of the paper's ensemble: the head on the embeddings' weighted sum."""
    return head_logits(weighted_embedding(beta, embeddings), head)
