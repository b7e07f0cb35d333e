"""Prediction level: logits of a frozen head, also from here, and ensembles weighted by beta."""

from collections.abc import Callable

import torch

from neulig_ray.models.logits import head_logits as head_logits


def weighted_embedding(beta: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """sum_i beta_i z_i, (N, d): embeddings (n, N, d) under one beta (n,) or one for each image (N, n)."""
    weights = beta.T.unsqueeze(-1) if beta.dim() == 2 else beta[:, None, None]
    return (weights * embeddings).sum(0)


def ensemble_logits(beta: torch.Tensor, embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Logits (N, C) of the paper's ensemble: the head on the embeddings' weighted sum."""
    return head_logits(weighted_embedding(beta, embeddings), head)


def equivalent_embedding(
    coefficients: torch.Tensor, embeddings: torch.Tensor, origin: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """z_0 + sum_i lambda_i (z_i - z_0), (N, d), of embeddings (n, N, d) with coefficients lambda (n,).

    `origin()` gives z_0 (N, d); it is not asked where the lambdas sum to 1 and z_0 cancels.
    """
    combined = torch.einsum("i,ind->nd", coefficients, embeddings)
    rest = 1 - float(coefficients.double().sum())
    return combined if abs(rest) < 1e-6 else combined + rest * origin()
