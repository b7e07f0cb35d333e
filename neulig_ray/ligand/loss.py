"""The ligand's loss, alpha L_a + L_b."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from neulig_ray.ligand.portland import Portland
from neulig_ray.ligand.weighted_offset import weighted_offset_loss

Objective = Literal["sup", "semi"]


@dataclass(frozen=True)
class StackedHeads:
    """One head for each member, padded to the most classes: weight (members, C, d), padding (members, 1, C).

    `padding` is 0 for a class and -inf for none.
    """

    weight: torch.Tensor
    padding: torch.Tensor

    @classmethod
    def of(cls, heads: Sequence[torch.Tensor]) -> "StackedHeads":
        classes = max(len(head) for head in heads)
        weight = torch.zeros(len(heads), classes, heads[0].shape[1])
        padding = torch.full((len(heads), 1, classes), -torch.inf)
        for member, head in enumerate(heads):
            weight[member, : len(head)] = head
            padding[member, :, : len(head)] = 0
        return cls(weight, padding)

    def logits(self, embedding: torch.Tensor) -> torch.Tensor:
        """(members, batch, C) of embeddings (members, batch, d), which are normalised here."""
        norm = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return torch.bmm(embedding, self.weight.transpose(1, 2)) / norm + self.padding


def prediction_loss(logits: torch.Tensor, labels: torch.Tensor, objective: Objective) -> torch.Tensor:
    """L_b for each image, (members, batch), in nats: logits (members, batch, C), labels (members, batch).

    `sup`: cross-entropy. `semi`: entropy, sum_c -p log(p + 1e-6); the labels are not looked at.
    """
    if objective == "sup":
        flat = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return flat.view(labels.shape)
    probability = logits.softmax(-1)
    return -(probability * (probability + 1e-6).log()).sum(-1)


def ligand_loss(
    portland: Portland,
    z: torch.Tensor,
    heads: StackedHeads,
    labels: torch.Tensor,
    forms: torch.Tensor,
    *,
    objective: Objective,
    alignment_weight: float,
) -> torch.Tensor:
    """alpha L_a + L_b for each image, (members, batch).

    z: (members, batch, n d), the concatenated embeddings. L_b judges the ensembled embedding
    sum_i beta_i z_i with the head of the images' own task; no merged model is in the graph.
    """
    beta = portland(z).squeeze(2)
    parts = z.view(*z.shape[:2], portland.n, -1)
    ensembled = (beta.unsqueeze(-1) * parts).sum(2)
    loss = prediction_loss(heads.logits(ensembled), labels, objective)
    if alignment_weight:
        loss = loss + alignment_weight * weighted_offset_loss(beta, forms)
    return loss
