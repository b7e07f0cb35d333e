"""The four uniform ensembles: what is averaged is the embedding, the logit, the probability or the vote."""

import torch
from torch.nn.functional import one_hot

from neulig_ray.merging import ensemble
from neulig_ray.merging.prediction import head_logits


@ensemble("ensemble-embedding", paper="arXiv 2503.01268 (simple averaging, ensembled)")
def ensemble_embedding(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """The head on the mean of the experts' embeddings."""
    return head_logits(embeddings.mean(0), head)


@ensemble("ensemble-logit", paper="arXiv 2203.05482 (logit ensemble)")
def ensemble_logit(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """The mean of the experts' logits."""
    return head_logits(embeddings, head).mean(0)


@ensemble("ensemble-probability", paper="arXiv 1612.01474 (deep ensembles)")
def ensemble_probability(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """The mean of the experts' probabilities."""
    return head_logits(embeddings, head).softmax(-1).mean(0)


@ensemble("ensemble-vote", paper="doi 10.1007/BF00058655 (bagging)")
def ensemble_vote(embeddings: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """The majority of the experts' predictions; the mean probability decides between equal votes."""
    logits = head_logits(embeddings, head)
    votes = one_hot(logits.argmax(-1), head.shape[0]).sum(0)
    return votes + logits.softmax(-1).mean(0) / 2  # halved: never as much as a vote
