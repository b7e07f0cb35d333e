"""The ligand's loss, alpha L_a + L_b."""

import torch
from torch.nn.functional import cross_entropy

from neulig_ray.ligand.recipe import Objective, Semi
from neulig_ray.ligand.weighted_offset import weighted_offset_loss


def head_logits(embedding: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """(members, batch, C) of embeddings (members, batch, d), normalised here, and heads (members, C, d)."""
    norm = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return torch.bmm(embedding, heads.transpose(1, 2)) / norm


def ligand_loss(
    gate: torch.Tensor,
    embeddings: torch.Tensor,
    heads: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    forms: torch.Tensor,
    *,
    own: int,
    objective: Objective,
    semi: Semi,
    alignment_weight: float,
) -> torch.Tensor:
    """alpha L_a + L_b of a batch of one task, (members,) in nats.

    gate: the gate's logits (members, batch, n); embeddings: the experts', (members, batch, n, d); heads:
    (members, C, d); labels: (members, batch); weights: of each image in the batch's mean, (members, batch),
    rows of sum 1; own: the place of the task's own expert. L_b of `sup` and `semi` judges the ensembled
    embedding sum_i beta_i z_i with the head of the images' own task, `route` beta alone; no merged model is
    in the graph.
    """
    beta = gate.softmax(-1)
    if objective == "route":
        by_image = -gate.log_softmax(-1)[..., own]
        loss = (by_image * weights).sum(-1)
    else:
        ensembled = torch.matmul(beta.unsqueeze(2), embeddings).squeeze(2)
        logits = head_logits(ensembled, heads)
        loss = prediction_loss(logits, labels, weights, objective, semi)
    if alignment_weight:
        loss = loss + alignment_weight * (weighted_offset_loss(beta, forms) * weights).sum(-1)
    return loss


def prediction_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, objective: Objective, semi: Semi
) -> torch.Tensor:
    """L_b (members,) of logits (members, batch, C): `sup`, cross-entropy with the labels.

    `semi` does not look at them: the mean entropy of the predictions, sum_c -p log(p + 1e-6), or with
    `information` that less the entropy of their mean: minus the mutual information of image and class
    (Bridle et al., 1991). Entropy alone is as low where every image of a task gets one and the same class.
    """
    if objective == "sup":
        flat = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (flat.view(labels.shape) * weights).sum(-1)
    probability = logits.softmax(-1)
    loss = (_entropy(probability) * weights).sum(-1)
    if semi == "information":
        loss = loss - _entropy((probability * weights.unsqueeze(-1)).sum(1))
    return loss


def _entropy(probability: torch.Tensor) -> torch.Tensor:
    return -(probability * (probability + 1e-6).log()).sum(-1)
